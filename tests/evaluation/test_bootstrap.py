"""Intervals by resampling: the fast way against pycocoevalcap run anew on every resampled set."""

import numpy as np
import pytest

from internvl.evaluation import bootstrap
from internvl.evaluation.bootstrap import image_weights, paired_differences, percentile_interval, resample
from internvl.evaluation.scorers import Scored, run_scorers, score_bleu, score_meteor, score_rouge_l


def captions(golden: dict) -> tuple[dict, dict]:
    references = dict(zip(golden["image_ids"], golden["ptb_references"], strict=True))
    hypotheses = {i: [text] for i, text in zip(golden["image_ids"], golden["ptb_hypotheses"], strict=True)}
    return references, hypotheses


def drawn(sets: dict, weights: np.ndarray) -> dict:
    """The resampled images, those drawn twice under two ids."""
    numbers = np.repeat(np.arange(len(sets)), weights.astype(int))
    return {place: list(sets.values())[number] for place, number in enumerate(numbers)}


@pytest.mark.slow
def test_the_sums_of_all_images_give_every_corpus_score(golden_set20):
    results, _ = run_scorers(*captions(golden_set20))
    for result in results:
        assert result.combine(result.statistics.sum(0)) == pytest.approx(result.corpus, abs=1e-12), result.names
        for row, *values in zip(result.statistics, *result.per_image, strict=True):
            assert result.combine(row) == pytest.approx(values, abs=1e-12), result.names


@pytest.mark.parametrize("scorer", [score_bleu, score_rouge_l, score_meteor])
def test_resampled_scores_are_those_of_scoring_the_resampled_set(scorer, golden_set20):
    references, hypotheses = captions(golden_set20)
    whole = scorer(references, hypotheses)
    fast = resample([whole], resamples=3)
    weights = np.concatenate(list(image_weights(len(references), 3, seed=0)))
    for number in range(3):
        slow = scorer(drawn(references, weights[number]), drawn(hypotheses, weights[number]))
        for name, value in zip(slow.names, slow.corpus, strict=True):
            assert fast[name][number] == pytest.approx(value, abs=1e-12), name


def scored(values) -> Scored:
    values = np.asarray(values, float)
    statistics = np.stack([values, np.ones_like(values)], 1)
    return Scored(
        ("S",), [float(values.mean())], [values.tolist()], statistics, lambda sums: sums[..., :1] / sums[..., 1:]
    )


def test_the_interval_of_a_mean_is_that_of_statistics():
    values = np.random.default_rng(1).normal(5, 2, size=400)
    low, high = percentile_interval(resample([scored(values)], resamples=4000)["S"])
    error = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.1 * error)


def test_draws_do_not_depend_on_how_many_are_held_at_a_time(monkeypatch):
    whole = resample([scored(range(10))], resamples=7)["S"]
    monkeypatch.setattr(bootstrap, "_MAX_WEIGHTS", 25)
    assert (resample([scored(range(10))], resamples=7)["S"] == whole).all()


def test_pairing_sees_a_difference_that_the_intervals_hide():
    hard = np.random.default_rng(2).normal(0, 10, size=100)
    first, second = [scored(hard)], [scored(hard + 0.5)]
    difference = paired_differences(first, second)["S"]
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.5, 0.5, 0.5))
    assert difference.p_value == 0
    same = paired_differences(first, first)["S"]
    assert (same.value, same.p_value) == (0, 1)
    back = paired_differences(second, first)["S"]
    assert back.value == pytest.approx(-0.5) and back.p_value == 0


def test_chance_is_told_from_difference():
    rng = np.random.default_rng(3)
    noise = paired_differences([scored(rng.normal(size=200))], [scored(rng.normal(size=200))])["S"]
    assert noise.low < 0 < noise.high and noise.p_value > 0.05
