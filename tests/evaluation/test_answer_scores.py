"""Accuracy, macro-F1, confusion, errors of numbers, episodes; intervals over clusters, and how many are needed."""

import numpy as np
import pytest

from internvl.errors import UserError
from internvl.evaluation.answer_scores import NOTHING, _mean, check_references, clusters_needed, score_answers
from internvl.evaluation.bootstrap import intervals, resample
from internvl.evaluation.matching import Match

WANTED = ["go", "go", "left", "right", "go", "left"]
SAID = ["go", "left", "left", "go", "stop", "?"]


def answers(said, wanted, how="exact", **more):
    predictions = [{"image_id": number, "caption": text} for number, text in enumerate(said)]
    references = {number: [text] if isinstance(text, str) else text for number, text in enumerate(wanted)}
    return score_answers(predictions, references, Match.parse(how), **more)


def slow_macro_f1(said, wanted) -> float:
    f1 = []
    for kind in set(wanted):
        both = sum(a == b == kind for a, b in zip(said, wanted, strict=True))
        f1.append(2 * both / (said.count(kind) + wanted.count(kind)))
    return sum(f1) / len(f1)


def test_accuracy_macro_f1_and_confusion_are_those_counted_by_hand():
    scores = answers(SAID, WANTED)
    assert scores.corpus == {"accuracy": 2 / 6, "macro_F1": pytest.approx(slow_macro_f1(SAID, WANTED))}
    assert scores.confusion[("go", "left")] == 1 and sum(scores.confusion.values()) == 6
    assert scores.classes[:3] == ["go", "left", "right"] and set(scores.classes[3:]) == {"stop", "?"}


def test_what_resampling_combines_is_what_scoring_the_drawn_answers_gives():
    rng = np.random.default_rng(3)
    said, wanted = (list(rng.choice(["a", "b", "c"], 40)) for _ in range(2))
    scores = answers(said, wanted)
    drawn = rng.integers(40, size=40)
    weights = np.bincount(drawn, minlength=40)
    [macro] = [result for result in scores.results if result.names == ("macro_F1",)]
    expected = slow_macro_f1([said[i] for i in drawn], [wanted[i] for i in drawn])
    assert macro.combine(weights @ macro.statistics)[0] == pytest.approx(expected)


def test_any_reference_is_right_and_one_that_says_nothing_is_refused():
    assert answers(["sofa"], [["couch", "sofa"]]).corpus["accuracy"] == 1
    with pytest.raises(
        UserError, match=r"val:3: of question 0 the reference 'go on' is not JSON.*--match json:action"
    ):
        check_references({0: ["go on"]}, Match.parse("json:action"), "val:3")


def test_broken_json_is_counted_by_reason_and_is_a_column_of_its_own():
    good = '{"action": "go"}'
    scores = answers([good, '{"action":', "go", '{"act": 1}'], [good, good, '{"action": "stop"}', good], "json:action")
    assert scores.corpus["accuracy"] == 0.25 and scores.corpus["valid"] == 0.25
    assert sum(scores.faults.values()) == 3 and scores.confusion[("go", NOTHING)] == 2
    assert scores.classes[-1] == NOTHING


def test_the_error_of_numbers_is_over_answers_that_have_one():
    scores = answers(["3 m", "none", "10"], ["4", "5", "8"], "number")
    assert scores.corpus["mean_absolute_error"] == 1.5 and scores.corpus["valid"] == pytest.approx(2 / 3)


def test_an_episode_succeeds_where_all_its_answers_are_right():
    scores = answers(["a", "b", "a", "x"], ["a", "b", "a", "b"], clusters={0: "e1", 1: "e1", 2: "e2", 3: "e2"})
    assert scores.corpus["episode_success"] == 0.5 and scores.num_clusters == 2


def simulated(rng, num_clusters=40, size=4, spread=0.3) -> tuple[list[float], list[str]]:
    """Answers that are right with a probability of their own in each cluster; the mean probability is 0.6."""
    probabilities = np.clip(0.6 + spread * rng.choice([-1, 1], num_clusters), 0, 1)
    right = rng.random((num_clusters, size)) < probabilities[:, None]
    return right.ravel().astype(float).tolist(), [str(c) for c in range(num_clusters) for _ in range(size)]


@pytest.mark.slow
def test_intervals_over_clusters_hold_the_truth_as_often_as_they_say():
    """Nominal 95 %: 93 to 97 % of 1,000 evaluations of 60 clusters; drawn one by one, far fewer."""
    rng = np.random.default_rng(0)
    held = {"clusters": 0, "single": 0}
    for _ in range(1000):
        right, clusters = simulated(rng, 60)
        result = _mean("accuracy", right)
        for name, groups in (("clusters", clusters), ("single", None)):
            values = resample([result], resamples=200, clusters=groups)["accuracy"]
            low, high = np.percentile(values, [2.5, 97.5])
            held[name] += low <= 0.6 <= high
    assert 930 <= held["clusters"] <= 970 and held["single"] < 850


def test_clusters_of_one_answer_are_answers():
    result = answers(SAID, WANTED).results
    assert intervals(result) == intervals(result, clusters=[str(number) for number in range(6)])


def test_as_many_clusters_as_are_needed_show_the_difference_four_times_in_five():
    rng = np.random.default_rng(1)
    right, clusters = simulated(rng, 400)
    scores = answers(["a" if r else "b" for r in right], ["a"] * len(right))
    needed = clusters_needed(scores, 0.1, clusters)
    seen = 0
    for _ in range(400):
        first, second = (np.array(simulated(rng, needed)[0]).reshape(needed, -1).mean(1) for _ in range(2))
        second = second + 0.1
        error = np.sqrt(first.var(ddof=1) / needed + second.var(ddof=1) / needed)
        seen += abs(second.mean() - first.mean()) > 1.96 * error
    assert 0.74 <= seen / 400 <= 0.86
