"""Scores of answers that are right or wrong: accuracy, macro-F1, a confusion matrix, errors of numbers, episodes."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from internvl.errors import UserError, shorten
from internvl.evaluation.bootstrap import intervals
from internvl.evaluation.matching import Match, Value
from internvl.evaluation.scorers import ImageId, Scored

NOTHING = "(nothing)"  # the class of an answer that says nothing to compare
MAX_CLASSES = 40  # beyond, a macro-F1 and a matrix say little and cost memory
# Of a two-sided test at 5 % with a power of 80 %: the sum of the two quantiles of the normal distribution.
Z_ALPHA, Z_POWER = 1.959964, 0.841621


@dataclass(frozen=True)
class AnswerScores:
    """What was found out about a set's answers.

    ``right`` is whether each answer is, by id. ``values`` are what each says, ``wanted`` what the first reference
    says. ``confusion`` counts (wanted, said) where there are at most :data:`MAX_CLASSES` kinds of answers, and
    ``faults`` the reasons for which answers said nothing.
    """

    corpus: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    right: dict[ImageId, bool]
    values: dict[ImageId, Value]
    wanted: dict[ImageId, str]
    confusion: dict[tuple[str, str], int]
    faults: dict[str, int]
    notes: list[str]
    num_clusters: int
    results: list[Scored] = field(repr=False, compare=False)

    @property
    def classes(self) -> list[str]:
        """The kinds of answers in the confusion matrix, the most frequent first, those that are only said last."""
        wanted: Counter[str] = Counter()
        for (kind, _), count in self.confusion.items():
            wanted[kind] += count
        said = sorted({pair[1] for pair in self.confusion} - wanted.keys() - {NOTHING})
        last = [NOTHING] if any(pair[1] == NOTHING for pair in self.confusion) else []
        return [kind for kind, _ in wanted.most_common()] + said + last


def check_references(
    references: Mapping[ImageId, Sequence[str]], match: Match, place: str, *, flag: str = "--match"
) -> None:
    """Refuse references that say nothing which could be compared.

    Args:
        references: id → the answers of people.
        match: what of them is compared.
        place: theirs, for messages.
        flag: the one that names ``match``, for messages.

    Raises:
        UserError: names the first one.
    """
    for image_id, texts in references.items():
        value = match.value(texts[0])
        if value.text is None:
            raise UserError(
                f"{place}: of question {image_id} the reference {shorten(texts[0])} {value.fault}. Give answers that "
                f"{flag} {match} can compare, or another {flag}."
            )


def score_answers(
    predictions: Sequence[Mapping],
    references: Mapping[ImageId, Sequence[str]],
    match: Match,
    *,
    clusters: Mapping[ImageId, str] | None = None,
) -> AnswerScores:
    """Compare answers with their references.

    Args:
        predictions: ``{"image_id", "caption"}`` of each question.
        references: id → the answers of people; an answer that is any of them is right.
        match: what of an answer is compared.
        clusters: id → what questions belong together by (an episode, a scene): intervals draw whole clusters, and an
            episode succeeds where all its answers are right.

    The references are those that :func:`check_references` lets through.
    """
    ids = [prediction["image_id"] for prediction in predictions]
    values = {prediction["image_id"]: match.value(prediction["caption"]) for prediction in predictions}
    truths = {image_id: [match.value(text) for text in references[image_id]] for image_id in ids}
    right = {image_id: match.is_right(values[image_id], truths[image_id]) for image_id in ids}
    wanted = {image_id: str(truths[image_id][0].text) for image_id in ids}
    results = [_mean("accuracy", [right[image_id] for image_id in ids])]
    notes: list[str] = []
    confusion: Counter[tuple[str, str]] = Counter()
    kinds = sorted(set(wanted.values()))
    if 1 < len(kinds) <= MAX_CLASSES:
        # An answer that is another reference than the first counts as the first.
        said = [wanted[i] if right[i] else _said(values[i]) for i in ids]
        results.append(_macro_f1([wanted[image_id] for image_id in ids], said, kinds))
        confusion = Counter(zip((wanted[image_id] for image_id in ids), said, strict=True))
    elif len(kinds) > MAX_CLASSES and match.kind != "number":
        notes.append(f"There are {len(kinds)} kinds of answers: no macro-F1, no confusion matrix.")
    if match.kind in ("json", "choice", "number", "regex"):
        results.append(_mean("valid", [values[image_id].text is not None for image_id in ids]))
    if match.kind == "number":
        results.append(_mean_error(ids, values, truths))
    groups = [clusters[image_id] for image_id in ids] if clusters else None
    corpus = {name: value for result in results for name, value in zip(result.names, result.corpus, strict=True)}
    if groups:
        by_group: dict[str, bool] = {}
        for image_id, group in zip(ids, groups, strict=True):
            by_group[group] = by_group.get(group, True) and right[image_id]
        corpus["episode_success"] = sum(by_group.values()) / len(by_group)
    faults = Counter(value.fault for value in values.values() if value.text is None)
    return AnswerScores(
        corpus=corpus,
        intervals=intervals(results, clusters=groups) if len(ids) > 1 else {},
        right=right,
        values=values,
        wanted=wanted,
        confusion=dict(confusion),
        faults=dict(faults.most_common()),
        notes=notes,
        num_clusters=len(set(groups)) if groups else len(ids),
        results=results,
    )


def _said(value: Value) -> str:
    return NOTHING if value.text is None else value.text


def _mean(name: str, by_answer: Sequence[float]) -> Scored:
    """A score that is the mean over answers."""
    values = np.array(by_answer, np.float64)
    statistics = np.stack([values, np.ones_like(values)], axis=1)
    return Scored(
        (name,), [float(values.mean())], [values.tolist()], statistics, lambda sums: sums[..., :1] / sums[..., 1:]
    )


def _mean_error(
    ids: Sequence[ImageId], values: Mapping[ImageId, Value], truths: Mapping[ImageId, list[Value]]
) -> Scored:
    """The mean absolute error of numbers, over the answers that have one."""
    errors, counted = [], []
    for image_id in ids:
        text, wanted = values[image_id].text, [float(str(truth.text)) for truth in truths[image_id] if truth.text]
        counted.append(float(text is not None))
        errors.append(0.0 if text is None else min(abs(float(text) - number) for number in wanted))
    statistics = np.stack([errors, counted], axis=1)

    def combine(sums: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(sums[..., 1:] > 0, sums[..., :1] / sums[..., 1:], 0.0)

    corpus = float(combine(statistics.sum(0))[0])
    return Scored(("mean_absolute_error",), [corpus], [errors], statistics, combine)


def _macro_f1(wanted: Sequence[str], said: Sequence[str], kinds: Sequence[str]) -> Scored:
    """Macro-F1: the mean over the kinds that are wanted of 2 TP / (wanted + said); a kind never drawn is left out."""
    number = {kind: index for index, kind in enumerate(kinds)}
    statistics = np.zeros((len(wanted), 3 * len(kinds)))
    for row, (truth, answer) in enumerate(zip(wanted, said, strict=True)):
        statistics[row, number[truth]] = 1
        if answer in number:
            statistics[row, len(kinds) + number[answer]] = 1
            if answer == truth:
                statistics[row, 2 * len(kinds) + number[truth]] = 1

    def combine(sums: np.ndarray) -> np.ndarray:
        of_truth, of_answers, both = np.split(sums, 3, axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            f1 = np.where(of_truth > 0, 2 * both / (of_truth + of_answers), np.nan)
        return np.nanmean(f1, axis=-1, keepdims=True)

    own = [float(truth == answer) for truth, answer in zip(wanted, said, strict=True)]
    return Scored(("macro_F1",), [float(combine(statistics.sum(0))[0])], [own], statistics, combine)


def clusters_needed(scores: AnswerScores, difference: float, clusters: Sequence[str] | None) -> int:
    """Return how many clusters (or answers) it takes to see a difference in accuracy between two models.

    With a power of 80 % in a two-sided test at 5 %, if the two models' answers do not depend on each other: answers to
    the same questions do, so fewer will do. The variance is that of this evaluation, between clusters.

    Args:
        scores: of an evaluation.
        difference: of two accuracies, such as 0.02.
        clusters: of each answer, in the order of ``scores``; None for none.
    """
    right = np.array(list(scores.right.values()), np.float64)
    names = list(clusters) if clusters else [str(number) for number in range(len(right))]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    index = np.array([numbers[name] for name in names])
    sizes = np.bincount(index).astype(np.float64)
    totals = np.bincount(index, weights=right)
    # Of a ratio of sums over clusters (Cochran 1977, 2.9): the deviations of a cluster's sum from its expectation.
    deviations = totals - right.mean() * sizes
    variance = float((deviations**2).sum() / max(1, len(sizes) - 1) / sizes.mean() ** 2)
    return math.ceil(2 * variance * ((Z_ALPHA + Z_POWER) / difference) ** 2)
