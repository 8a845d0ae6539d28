"""Rows: what is accepted, and what each mistake is called."""

import json

import pytest

from internvl.data.annotation import AnnotationFile, parse_row
from internvl.errors import UserError

QUESTION = {"from": "human", "value": "<image>\nWhat?"}
ANSWER = {"from": "gpt", "value": "A cup."}


def test_a_single_image_without_marker_goes_before_the_first_question():
    row = parse_row({"image": "a.png", "conversations": [{"from": "human", "value": "What?"}, ANSWER]}, "f:1")
    assert row.turns[0].value == "<image>\nWhat?"


@pytest.mark.parametrize("image", ["", [], None])
def test_an_empty_image_field_makes_a_text_row(image):
    row = parse_row({"image": image, "conversations": [{"from": "human", "value": "Hi"}, ANSWER]}, "f:1")
    assert row.images == ()


def test_sizes_are_read_for_one_image_and_for_lists():
    one = parse_row({"image": "a", "width": 4, "height": 3, "conversations": [QUESTION, ANSWER]}, "f:1")
    several = {"image": ["a"], "width_list": [4], "height_list": [3], "conversations": [QUESTION, ANSWER]}
    assert one.sizes == parse_row(several, "f:1").sizes == ((4, 3),)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "holds list, not an object"),
        ({}, "conversations is None"),
        ({"conversations": []}, r"conversations is \[\]"),
        ({"conversations": [{"from": "user", "value": "x"}, ANSWER]}, "turn 1 is from 'user'"),
        ({"conversations": [{"from": "human"}, ANSWER]}, "turn 1 has the value None"),
        ({"conversations": [ANSWER, ANSWER]}, "turn 1, the first, is an answer"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "ends with a 'human' turn"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": " "}]}, "is an empty answer"),
        ({"conversations": [QUESTION, ANSWER]}, "1 <image> markers in the human turns but lists 0 images"),
        ({"image": ["a", "b"], "conversations": [QUESTION, ANSWER]}, "1 <image> markers .* lists 2 images"),
        ({"image": 3, "conversations": [QUESTION, ANSWER]}, "image is 3"),
        ({"conversations": [{"from": "human", "value": "<IMG_CONTEXT>"}, ANSWER]}, "reserved token <IMG_CONTEXT>"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "<image>"}]},
         "from 'gpt', contains"),
        ({"image": "a", "width": 0, "height": 5, "conversations": [QUESTION, ANSWER]}, "width 0 and height 5"),
        ({"video": "a.mp4", "conversations": [QUESTION, ANSWER]}, "has a video and no image, and 1 <image>"),
    ],
)  # fmt: skip
def test_each_mistake_is_named_with_file_and_line(record, message):
    with pytest.raises(UserError, match=rf"^data\.jsonl:7: .*{message}"):
        parse_row(record, "data.jsonl:7")


def test_lines_are_found_whatever_ends_them(tmp_path):
    row = json.dumps({"conversations": [{"from": "human", "value": "Hi"}, ANSWER]})
    file = tmp_path / "a.jsonl"
    file.write_bytes(f"{row}\r\n\n{row}\n  \n{row}".encode())
    rows = AnnotationFile(file)
    assert len(rows) == 3
    assert [rows.where(index).rsplit(":", 1)[1] for index in range(3)] == ["1", "3", "5"]
    assert rows.row(2).turns[1].value == "A cup."


@pytest.mark.parametrize(("line", "message"), [(b"{'a': 1}", "is not valid JSON"), (b'{"a": "\xff"}', "is not UTF-8")])
def test_a_broken_line_is_named(tmp_path, line, message):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\n" + line + b"\n")
    with pytest.raises(UserError, match=rf"a\.jsonl:2: {message}"):
        AnnotationFile(file).row(0)
