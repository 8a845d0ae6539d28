"""The scorers of pycocoevalcap, each with the sums over images that its corpus score is made of."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from internvl.evaluation.java_scorers import ScorerFailure, meteor, spice

ImageId = int | str
# Image id -> tokenised captions. Scorers take two of them, references and hypotheses (one each), with the same keys
# in the same order.
Captions = Mapping[ImageId, list[str]]

# METEOR 1.5 for English with -norm, as pycocoevalcap runs it (Denkowski & Lavie 2014, table 1): how much recall,
# fragmentation and content words count, and the weights of exact, stem, synonym and paraphrase matches.
METEOR_ALPHA, METEOR_BETA, METEOR_GAMMA, METEOR_DELTA = 0.85, 0.20, 0.60, 0.75
METEOR_MATCH_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])


@dataclass(frozen=True)
class Scored:
    """What one scorer found out; all lists and arrays have the images in the order of the captions.

    ``statistics``, float64 (images, K), decide the corpus scores through their sums alone: ``combine`` makes
    (…, K) sums into (…, len(names)) scores. So a resampled set of images is scored without running the scorer again.
    """

    names: tuple[str, ...]
    corpus: list[float]
    per_image: list[list[float]]
    statistics: np.ndarray
    combine: Callable[[np.ndarray], np.ndarray]


def run_scorers(references: Captions, hypotheses: Captions) -> tuple[list[Scored], list[str]]:
    """Run all scorers; returns their results, and a sentence for each that failed or is not installed."""
    results, failures = [], []
    for names, scorer in SCORERS:
        try:
            results.append(scorer(references, hypotheses))
        except ScorerFailure as err:
            failures.append(f"{', '.join(names)} could not be computed: {err}.")
    return results, failures


def _mean_of(name: str, corpus: float, by_image: Iterable[float]) -> Scored:
    """A score whose corpus value is the mean over images."""
    values = np.array(list(by_image), dtype=np.float64)
    statistics = np.stack([values, np.ones_like(values)], axis=1)
    return Scored((name,), [float(corpus)], [values.tolist()], statistics, lambda sums: sums[..., :1] / sums[..., 1:])


def score_bleu(references: Captions, hypotheses: Captions) -> Scored:
    """Bleu 1 to 4: the corpus score takes n-gram matches and lengths of all images together."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    # What pycocoevalcap's class Bleu does, which throws the counts away.
    scorer = BleuScorer(n=4)
    for image_id, captions in references.items():
        scorer += (hypotheses[image_id][0], captions)
    corpus, by_image = scorer.compute_score(option="closest", verbose=0)
    statistics = []
    for counts in scorer.ctest:
        closest = min((abs(length - counts["testlen"]), length) for length in counts["reflen"])[1]
        statistics.append([counts["testlen"], closest, *counts["correct"], *counts["guess"]])
    names = tuple(f"Bleu_{n}" for n in range(1, 5))
    return Scored(names, [float(value) for value in corpus], by_image, np.array(statistics, float), _combine_bleu)


def _combine_bleu(sums: np.ndarray) -> np.ndarray:
    """Bleu 1 to 4 from summed counts, with pycocoevalcap's guards against division by zero."""
    small, tiny = 1e-9, 1e-15
    precision = (sums[..., 2:6] + tiny) / (sums[..., 6:10] + small)
    geometric_mean = np.exp(np.cumsum(np.log(precision), axis=-1) / np.arange(1, 5))
    ratio = (sums[..., :1] + tiny) / (sums[..., 1:2] + small)
    return geometric_mean * np.exp(np.minimum(0, 1 - 1 / ratio))


def score_meteor(references: Captions, hypotheses: Captions) -> Scored:
    """METEOR: the corpus score takes matches and lengths of all images together."""
    corpus, by_image, lines = meteor(references, hypotheses)
    statistics = np.array([[float(number) for number in line.split()] for line in lines])
    # A caption that matches word for word in one run counts as not fragmented at all.
    whole = (
        (statistics[:, 20] == 1) & (statistics[:, 0] == statistics[:, 21]) & (statistics[:, 1] == statistics[:, 22])
    )
    statistics[whole, 20] = 0
    return Scored(("METEOR",), [corpus], [by_image], statistics, combine_meteor)


def combine_meteor(sums: np.ndarray) -> np.ndarray:
    """METEOR from summed statistics of its Java program (Denkowski & Lavie 2014, section 2).

    The 23 columns: words and function words of caption and reference (0-3); matched content and function words of
    both, for each kind of match (4-19); chunks (20); matched words of both (21, 22).
    """

    def share(side: int) -> np.ndarray:
        content, function = sums[..., 4 + side : 20 : 4], sums[..., 6 + side : 20 : 4]
        matched = (METEOR_MATCH_WEIGHTS * (METEOR_DELTA * content + (1 - METEOR_DELTA) * function)).sum(-1)
        words, function_words = sums[..., side], sums[..., 2 + side]
        return matched / (METEOR_DELTA * (words - function_words) + (1 - METEOR_DELTA) * function_words)

    with np.errstate(divide="ignore", invalid="ignore"):  # no words, or no match: the score is 0
        precision, recall = share(0), share(1)
        f_mean = precision * recall / (METEOR_ALPHA * precision + (1 - METEOR_ALPHA) * recall)
        fragmentation = sums[..., 20] / ((sums[..., 21] + sums[..., 22]) / 2)
        score = f_mean * (1 - METEOR_GAMMA * fragmentation**METEOR_BETA)
    return np.nan_to_num(score)[..., None]


def score_rouge_l(references: Captions, hypotheses: Captions) -> Scored:
    """ROUGE-L, a mean over images."""
    from pycocoevalcap.rouge.rouge import Rouge

    return _mean_of("ROUGE_L", *Rouge().compute_score(references, hypotheses))


def score_cider(references: Captions, hypotheses: Captions) -> Scored:
    """CIDEr, a mean over images; words weigh as they do in the whole set, also in a resampled one."""
    from pycocoevalcap.cider.cider import Cider

    return _mean_of("CIDEr", *Cider().compute_score(references, hypotheses))


def _score_spice(references: Captions, hypotheses: Captions) -> Scored:
    """SPICE, a mean over images; its models are not part of pycocoevalcap's package."""
    return _mean_of("SPICE", *spice(references, hypotheses))


Scorer = Callable[[Captions, Captions], Scored]
SCORERS: tuple[tuple[tuple[str, ...], Scorer], ...] = (
    (("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"), score_bleu),
    (("METEOR",), score_meteor),
    (("ROUGE_L",), score_rouge_l),
    (("CIDEr",), score_cider),
    (("SPICE",), _score_spice),
)
