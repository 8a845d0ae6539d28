"""Boxes to and from the model's thousandths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl.data.boxes import Mention, check_boxes, format_boxes, parse_boxes, to_pixels


def test_boxes_are_written_in_thousandths_and_kept_inside_the_image():
    text = format_boxes("cup", [(0, 0, 320, 240), (-5, 10, 700, 480)], 640, 480)
    assert text == "<ref>cup</ref><box>[[0, 0, 500, 500], [0, 21, 1000, 1000]]</box>"
    assert parse_boxes(f"See {text}.") == [Mention("cup", [(0, 0, 500, 500), (0, 21, 1000, 1000)])]


def test_boxes_without_a_name_and_several_mentions_are_read():
    text = "<box>[[1, 2, 3, 4]]</box> and <ref>白い\ncup</ref> <box>[[0, 0, 1000, 1000]]</box>"
    assert [mention.label for mention in parse_boxes(text)] == [None, "白い\ncup"]


def test_a_name_without_boxes_does_not_run_on_to_the_next_boxes():
    assert parse_boxes("<ref>cup</ref> by <ref>jug</ref><box>[[1, 2, 3, 4]]</box>") == [Mention("jug", [(1, 2, 3, 4)])]


@pytest.mark.parametrize(
    ("label", "boxes", "size", "message"),
    [
        ("cup", [(5, 5, 1, 1)], (9, 9), "corners the wrong way round"),
        ("cup", [], (9, 9), "not a list of boxes"),
        ("cup", [(0, 0, 1)], (9, 9), "argument 2 is longer"),
        ("a</ref>b", [(0, 0, 1, 1)], (9, 9), "</ref> closes nothing"),
        ("cup", [(0, 0, 1, 1)], (0, 9), "has the size 0 × 9"),
        ("cup", [(float("nan"), 0, 1, 1)], (9, 9), "NaN"),
    ],
)
def test_texts_that_could_not_be_read_back_are_not_written(label, boxes, size, message):
    with pytest.raises(ValueError, match=message):
        format_boxes(label, boxes, *size)


@given(st.integers(1, 5000), st.integers(1, 5000), st.data())
def test_pixels_come_back_within_half_a_thousandth(width, height, data):
    xs = sorted(data.draw(st.floats(0, width)) for _ in range(2))
    ys = sorted(data.draw(st.floats(0, height)) for _ in range(2))
    box = (xs[0], ys[0], xs[1], ys[1])
    (mention,) = parse_boxes(format_boxes("x", [box], width, height))
    for value, back, side in zip(box, to_pixels(mention.boxes[0], width, height), (width, height) * 2, strict=True):
        assert abs(value - back) <= side / 2000 + 1e-6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<ref>cup", "<ref> is not closed"),
        ("cup</ref>", "</ref> closes nothing"),
        ("<ref>cup<box>[[0, 0, 1, 1]]</box></ref>", "<box> stands inside <ref>"),
        ("<box>[[0, 0, 1, 1]]</ref>", "</ref> closes nothing"),
        ("<box></box>", "is not a list"),
        ("<box>[]</box>", "is not a list"),
        ("<box>[[0, 0, 1</box>", "is not a list"),
        ("<box>[0, 0, 1, 1]</box>", "four whole numbers"),
        ("<box>[[0, 0, 1]]</box>", "four whole numbers"),
        ("<box>[[0.1, 0, 1, 1]]</box>", "four whole numbers"),
        ("<box>[[1_0, 0, 20, 1]]</box>", "is not a list"),
        ("<box>[[0, 0, 1001, 1]]</box>", "outside 0 to 1000"),
        ("<box>[[-1, 0, 1, 1]]</box>", "outside 0 to 1000"),
        ("<box>[[5, 0, 1, 1]]</box>", "wrong way round"),
        ("<box>__import__('os')</box>", "is not a list"),
    ],
)
def test_what_is_wrong_is_said(text, message):
    assert message in check_boxes(text)
    with pytest.raises(ValueError, match=message):
        parse_boxes(text)


@pytest.mark.parametrize("text", ["", "a < b > c", "<ref>cup</ref>", "<box>[[0,0,1,1],[2,2,3,3]]</box>"])
def test_right_texts_pass(text):
    assert check_boxes(text) is None
