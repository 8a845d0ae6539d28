"""What of an answer is compared."""

import pytest

from internvl.errors import UserError
from internvl.evaluation.matching import Match


@pytest.mark.parametrize(
    ("how", "answer", "expected"),
    [
        ("exact", "  Turn   LEFT. ", "turn left"),
        ("choice", "B", "B"),
        ("choice", "(c) the door", "C"),
        ("choice", "b) the door", "B"),
        ("choice", "Answer: D.", "D"),
        ("choice", "The correct answer is (A).", "A"),
        ("number", "There are 1,250 steps", "1250"),
        ("number", "-3.50 m", "-3.5"),
        ("number", "about .5", "0.5"),
        ("number", "3.0", "3"),
        ("json:action", '{"action": "stop", "thought": "there"}', "stop"),
        ("json:plan.action", '{"plan": {"action": ["a", 1]}}', '["a", 1]'),
        ("json:action", '```json\n{"action": "turn left"}\n```', "turn left"),
        ("regex:turn (left|right)", "I turn right now", "right"),
        ("regex:stop", "then stop", "stop"),
    ],
)
def test_what_an_answer_says(how, answer, expected):
    assert Match.parse(how).value(answer).text == expected


@pytest.mark.parametrize(
    ("how", "answer", "fault"),
    [
        ("choice", "A door is there", "begins with no letter of a choice"),
        ("choice", "", "begins with no letter of a choice"),
        ("number", "none", "has no number"),
        ("json:action", "go on", "is not JSON"),
        ("json:action", '{"action": "stop"', "is broken JSON (Expecting ',' delimiter)"),
        ("json:action", '["stop"]', "is JSON, but no object"),
        ("json:action", '{"act": 1}', "has no field 'action'"),
        ("regex:left", "right", "does not hold the pattern"),
    ],
)
def test_an_answer_that_says_nothing_has_its_reason(how, answer, fault):
    value = Match.parse(how).value(answer)
    assert value.text is None and value.fault == fault


def test_numbers_are_compared_as_numbers():
    match = Match.parse("number")

    def right(answer, *references):
        return match.is_right(match.value(answer), [match.value(reference) for reference in references])

    assert right("1000", "1,000.0") and right("0.3", "0.30000000001") and right("7", "6", "7")
    assert not right("0.31", "0.3") and not right("none", "0")


@pytest.mark.parametrize(
    "text", ["", "exactly", "json", "json:", "regex:", "regex:(", "choice:A", "exact:", "number:2"]
)
def test_what_is_no_way_to_compare_is_refused(text):
    with pytest.raises(UserError, match="--match: "):
        Match.parse(text)
