"""CIDEr-D against pycocoevalcap's, caption by caption, and against a slow loop written from the paper."""

import json
import math
import time

import pytest

from internvl.evaluation.java_scorers import ptb_tokenize, tokenize_sides
from internvl.evaluation.scorers import score_cider
from internvl.reward.chunk_tokenizer import ChunkTokenizer
from internvl.reward.cider_d import CiderD
from tests.conftest import REPOSITORY


def habitat(split):
    """Captions of the shipped set by image."""
    captions = {}
    for line in (REPOSITORY / "data" / "habitat" / f"{split}.jsonl").read_text().splitlines():
        row = json.loads(line)
        captions.setdefault(row["image"], []).append(row["conversations"][-1]["value"])
    return captions


@pytest.fixture(scope="module")
def val():
    """(references, one hypothesis an image): each image's last caption, with words of the next one's."""
    captions = habitat("val")
    names = list(captions)
    hypotheses = {
        name: " ".join([*captions[name][-1].split()[:6], *captions[other][0].split()[3:]])
        for name, other in zip(names, names[1:] + names[:1], strict=True)
    }
    return {name: captions[name][:-1] for name in names}, hypotheses


def test_with_its_own_frequencies_it_is_pycocoevalcaps_cider(val):
    references, hypotheses = tokenize_sides(*val)
    expected = score_cider(references, hypotheses).per_image[0]
    scorer = CiderD({key: [text.split() for text in texts] for key, texts in references.items()}, with_end=False)
    got = [scorer.score(key, texts[0].split()) for key, texts in hypotheses.items()]
    assert got == pytest.approx(expected, abs=1e-9) and min(expected) >= 0 and max(expected) > 1


def slow_cider_d(train, key, words, n_max=4, sigma=6.0):
    """From the paper: tf-idf vectors of n-grams, clipped, a Gaussian penalty of the length, the mean over n, times 10.

    Lengths are counted in bigrams, as the authors' program counts them.
    """

    def ngrams(sentence, n):
        return [tuple(sentence[i : i + n]) for i in range(len(sentence) - n + 1)]

    def weight(sentence, ngram, n):
        having = sum(any(ngram in ngrams(caption, n) for caption in captions) for captions in train.values())
        return ngrams(sentence, n).count(ngram) * (math.log(len(train)) - math.log(max(1, having)))

    total = 0.0
    for n in range(1, n_max + 1):
        for reference in train[key]:
            own = {ngram: weight(words, ngram, n) for ngram in set(ngrams(words, n))}
            theirs = {ngram: weight(reference, ngram, n) for ngram in set(ngrams(reference, n))}
            norm = math.sqrt(sum(v * v for v in own.values())) * math.sqrt(sum(v * v for v in theirs.values()))
            shared = sum(min(own[ngram], theirs[ngram]) * theirs[ngram] for ngram in own.keys() & theirs.keys())
            difference = (len(words) - 1) - (len(reference) - 1)
            if norm:
                total += shared / norm * math.exp(-(difference**2) / (2 * sigma**2)) / len(train[key])
    return 10 * total / n_max


def test_with_frequencies_of_the_training_set_it_is_a_slow_loop_from_the_paper():
    train = {name: [text.split() for text in texts] for name, texts in list(habitat("train").items())[:25]}
    ended = {name: [[*words, "<end>"] for words in captions] for name, captions in train.items()}
    scorer = CiderD(train)
    names = list(train)
    for name, other in zip(names[:6], names[1:7], strict=True):
        words = [*train[name][0][:5], *train[other][1][2:]]
        assert scorer.score(name, words, ended=True) == pytest.approx(slow_cider_d(ended, name, [*words, "<end>"]))
        assert scorer.score(name, words, ended=False) == pytest.approx(slow_cider_d(ended, name, words))


def test_a_caption_whose_ending_is_broken_gets_less_than_the_same_one_ended():
    captions = {name: [text.rstrip(".").lower().split() for text in texts] for name, texts in habitat("train").items()}
    scorer, without_end = CiderD(captions), CiderD(captions, with_end=False)
    lost, lost_without_end = [], []
    for name, (whole, *_) in list(captions.items())[:200]:
        for broken in ([*whole, "with", "a"], [*whole[:-2], "and", "a"]):
            assert scorer.score(name, whole, ended=True) > scorer.score(name, broken, ended=False)
        # Cut before its last word: some gain by it, fewer and less where the end is a word of the sentence.
        lost.append(scorer.score(name, whole, ended=True) - scorer.score(name, whole[:-1], ended=False))
        lost_without_end.append(without_end.score(name, whole) - without_end.score(name, whole[:-1]))
    assert sum(value <= 0 for value in lost) < sum(value <= 0 for value in lost_without_end)
    assert sum(lost) > 2 * sum(lost_without_end) > 0
    assert scorer.signature == "STANDARD_wInit+Cider-D[n4,s6.0]" and "woInit" in without_end.signature


def test_words_are_those_of_the_scorers_tokenizer(val):
    odd = [
        "There's a dog (wet).",
        "A U.S. flag, 3.5 m; it isn't 10%!",
        'He said: "no" -- don\'t, well-known.',
        "",
        "  ",
    ]
    captions = [text for texts in habitat("val").values() for text in texts] + odd
    tokenizer = ChunkTokenizer()
    assert [" ".join(words) for words in tokenizer(captions)] == ptb_tokenize(captions)


def test_real_captions_have_the_scorers_words(shared):
    truth = json.loads(next((shared / "coco_mini").rglob("*captions*.json")).read_text())
    captions = [annotation["caption"] for annotation in truth["annotations"]]
    words = [" ".join(words) for words in ChunkTokenizer()(captions)]
    expected = ptb_tokenize(captions)
    differing = [pair for pair in zip(words, expected, strict=True) if pair[0] != pair[1]]
    assert len(captions) > 100 and not differing, differing[:5]


def test_a_steps_answers_are_scored_fast():
    """5 answers about each of 64 images in under 50 ms is what a step can spare; ten times that would be a fault."""
    captions = {name: [text.split() for text in texts] for name, texts in habitat("train").items()}
    scorer = CiderD(captions)
    names = list(captions)[:64]
    started = time.perf_counter()
    for name in names:
        for words in captions[name]:
            scorer.score(name, words)
    assert time.perf_counter() - started < 0.5
