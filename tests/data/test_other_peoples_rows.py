"""Rows of other tools and of people who write more into them: read, refused by name, or counted (public cases)."""

import json
import re
from pathlib import Path

import pytest

from internvl.data.annotation import AnnotationFile, parse_row
from internvl.data.checking import check_dataset
from internvl.data.conversion import FORMATS, Options, read_rows
from internvl.data.problems import RowError
from internvl.data.row_keys import MEDIA_KEYS
from internvl.data.summary import summarize
from tests.data.opening import open_rows

CASES = Path(__file__).parents[1] / "cases"
TURNS = [{"from": "human", "value": "Hello."}, {"from": "gpt", "value": "Hi."}]


def converted(name: str, file: Path) -> list[dict | RowError]:
    return [row for row, _ in read_rows(name, file, Options())]


def texts(row: dict) -> list[str]:
    return [turn["value"] for turn in row["conversations"]]


@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_system_key_is_the_system_turn(key):
    row = parse_row({key: "Answer in one word.", "conversations": TURNS}, "f:1")
    assert row.turns[0] == ("system", "Answer in one word.")
    with pytest.raises(RowError, match="has a system turn and another message"):
        parse_row({key: "One.", "conversations": [{"from": "system", "value": "Two."}, *TURNS]}, "f:1")


def test_the_published_cases_of_system_keys_teach_the_message():
    for name in ("system_key", "system_prompt"):
        file = AnnotationFile(CASES / "30" / f"{name}.jsonl")
        assert all(file.row(index).turns[0].role == "system" for index in range(len(file)))
        for source in ("llava", "sharegpt"):
            for row in converted(source, CASES / "30" / f"{name}.json"):
                assert parse_row(row, "f:1").turns[0].role == "system"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tools": [{"name": "search"}]}, "has the key 'tools' .*: tools that the prompt would list"),
        ({"history": [["a", "b"]]}, "has the key 'history'"),
        ({"objects": {"bbox": [[1, 2, 3, 4]]}}, "has the key 'objects' .* --from messages"),
        ({"loss_weight": 0.3}, "has the key 'loss_weight' .0.3.: .* Rename it to 'weight'"),
        ({"channel": "chat"}, "has the key 'channel'"),
        ({"system": 3}, "system is 3"),
        ({"system": "a", "system_prompt": "b"}, "two system messages"),
    ],
)
def test_keys_that_change_what_is_asked_or_taught_are_refused_by_name(fields, words):
    with pytest.raises(RowError, match=words):
        parse_row({**fields, "conversations": TURNS}, "f:1")
    if "system" not in fields:
        with pytest.raises(RowError, match="turn 2 has the key"):
            parse_row({"conversations": [TURNS[0], {**TURNS[1], **fields}]}, "f:1")


def test_media_under_other_keys_are_not_left_out_in_silence():
    for key, ours in MEDIA_KEYS.items():
        row = {key: "a.jpg", "conversations": TURNS}
        with pytest.raises(RowError, match=f"--from sharegpt|has the key '{key}' .* Rename it to '{ours}'"):
            parse_row(row, "f:1")
        assert parse_row({ours: "b.jpg", **row}, "f:1").notes == (f"key {key!r}, not read",)
        renamed = parse_row({ours: row.pop(key), **row}, "f:1")
        assert "a.jpg" in (renamed.video, *renamed.images)
    with pytest.raises(RowError, match="has the key 'audio' .*: sound"):
        parse_row({"image": "a.jpg", "audio": "a.wav", "conversations": TURNS}, "f:1")


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]},
        {
            "image": "a.jpg",
            "conversations": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}],
        },
        {"conversations": [{"from": "user", "value": "Q?"}, {"from": "assistant", "value": "A."}]},
        {"images": ["a.jpg"], "conversations": [TURNS[0], {"from": "gpt", "value": "A."}]},
        {"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]},
        {"instruction": "Q?", "input": "", "output": "A."},
        {"query": "Q?", "response": "A."},
        {"image": "a.jpg", "caption": "A."},
    ],
    ids=lambda row: " ".join(row),
)
def test_a_training_row_of_another_form_names_the_conversion_that_makes_it_right(row, tmp_path):
    with pytest.raises(RowError) as error:
        parse_row(row, "f:1")
    command = re.search(r"tools/(convert_annotations)\.py FILE OUT\.jsonl --from (\w+)", str(error.value))
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    (made,) = converted(command[2], file)
    assert parse_row(made, "f:1").turns[-1] == ("gpt", "A.")


def test_values_that_change_nothing_are_taken():
    neutral = {"tools": None, "history": [], "objects": {}, "loss": True, "weight": 1.0, "channel": None, "system": ""}
    answer = {**TURNS[1], "loss": 1.0, "weight": 1}
    assert parse_row({**neutral, "conversations": [TURNS[0], answer]}, "f:1").notes == ()
    # A row of our form may have what other forms have, beside it: it is counted.
    others = {"messages": [], "instruction": "x", "caption": "y", "images": ["b.jpg"]}
    row = parse_row(
        {"image": "a.jpg", **others, "conversations": [TURNS[0], {**TURNS[1], "role": "assistant"}]}, "f:1"
    )
    assert row.images == ("a.jpg",) and len(row.notes) == 5


def test_other_keys_are_counted_by_the_check(tiny_model, tmp_path):
    rows = [{"source": "web", "score": 1, "conversations": TURNS}, {"source": "", "conversations": TURNS}]
    rows.append({"conversations": [TURNS[0], {**TURNS[1], "speaker": 1}]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = open_rows(tmp_path, tiny_model.tokenizer)
    notes = summarize(data, check_dataset(data))["datasets"]["rows"]["notes"]
    assert notes == {"key 'source', not read": 2, "key 'score', not read": 1, "key 'speaker' of turns, not read": 1}


@pytest.mark.parametrize("mark", ["<bbox>", "<ref-object>", "<audio>"])
def test_marks_of_another_tool_are_named(mark):
    for turns in ([TURNS[0], {"from": "gpt", "value": mark}], [{"from": "human", "value": mark}, TURNS[1]]):
        with pytest.raises(RowError, match=f"contains {mark}, a mark that another tool fills in"):
            parse_row({"conversations": turns}, "f:1")


def test_a_leading_answer_is_refused_with_its_reason():
    with pytest.raises(RowError, match="turn 1, the first, is an answer"):
        AnnotationFile(CASES / "30" / "leading_gpt.jsonl").row(0)


def test_one_video_in_a_list_is_a_video():
    assert AnnotationFile(CASES / "30" / "one_video_as_list.jsonl").row(0).kind == "video"
    for source in ("llava", "sharegpt"):
        assert parse_row(converted(source, CASES / "30" / "one_video_as_list.json")[0], "f:1").kind == "video"


def test_videos_that_are_marked_as_images_are_converted_and_named_in_training_rows():
    rows = converted("llava", CASES / "10" / "train.json")
    assert rows and all(parse_row(row, "f:1").kind == "video" for row in rows)
    assert all(texts(row)[0].startswith("<video>\n") for row in rows)
    with pytest.raises(RowError, match="has a video and no image, and 1 <image>.* Mark the video with <video>"):
        AnnotationFile(CASES / "10" / "train.jsonl").row(0)


def test_boxes_beside_a_text_are_filled_in_for_its_marks():
    first, second, third = converted("messages", CASES / "11" / "swift.jsonl")
    assert texts(first)[1] == (
        "<ref>a red square</ref><box>[[100, 250, 350, 750]]</box> is left of "
        "<ref>a blue square</ref><box>[[600, 300, 900, 900]]</box>."
    )
    assert texts(second)[0] == "<image>Find <ref>the blue square</ref>"
    assert texts(third)[0] == "<image>What is at <box>[[100, 250, 350, 750]]</box>?"
    assert not any("objects" in row for row in (first, second, third))


def test_the_older_form_of_boxes_is_refused_by_name():
    (row,) = converted("alpaca", CASES / "11" / "swift_old.jsonl")
    assert isinstance(row, RowError) and "objects is" in str(row) and '"ref": [names]' in str(row)


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ({"ref": [], "bbox": [[1, 2, 3, 4]]}, "0 <ref-object> and 0 <bbox> for 0 names and 1 boxes"),
        ({"ref": [], "bbox": [], "bbox_type": "cm"}, "bbox_type 'cm'"),
        ({"ref": [], "bbox": [], "polygon": []}, "the key 'polygon'"),
    ],
)
def test_boxes_that_do_not_fit_their_marks_are_refused(tmp_path, objects, words):
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    (tmp_path / "in.jsonl").write_text(json.dumps({"messages": messages, "objects": objects}))
    (row,) = converted("messages", tmp_path / "in.jsonl")
    assert isinstance(row, RowError) and words in str(row)


@pytest.mark.parametrize("unit", ["real", "norm1"])
def test_units_of_boxes_and_an_image_that_is_not_there(tmp_path, unit):
    messages = [{"role": "user", "content": "<image>Find <bbox>"}, {"role": "assistant", "content": "Hello."}]
    objects = {"ref": [], "bbox": [[0.25, 0.5, 0.5, 1]], "bbox_type": unit}
    (tmp_path / "in.jsonl").write_text(json.dumps({"messages": messages, "images": ["no.png"], "objects": objects}))
    (row,) = converted("messages", tmp_path / "in.jsonl")
    if unit == "real":
        assert isinstance(row, RowError) and "Pass --root FOLDER" in str(row)
    else:
        assert texts(row)[0] == "<image>Find <box>[[250, 500, 500, 1000]]</box>"


@pytest.mark.parametrize(
    ("name", "source", "count"),
    [("blip_train.json", "captions", 4), ("blip_val.json", "captions", 6), ("roles.json", "sharegpt", 3),
     ("alpaca.json", "alpaca", 3), ("query.jsonl", "alpaca", 3)],
)  # fmt: skip
def test_each_shape_is_read_by_one_format_and_named_by_the_others(name, source, count):
    file = CASES / "23" / name
    rows = converted(source, file)
    assert len(rows) == count and all(parse_row(row, "f:1").kind == "image" for row in rows)
    for other in ("llava", "messages", "sharegpt", "alpaca", "captions", "coco"):
        if other != source:
            with pytest.raises(RowError, match=rf"{name}:.*\. Pass --from {source}\."):
                raise next(row for row in converted(other, file) if isinstance(row, RowError))


def test_every_advice_of_a_format_names_one_that_there_is():
    from internvl.data.conversation_formats import nearest_format

    shapes = [
        {"messages": []}, {"conversations": []}, {"conversations": [{"role": "user"}]}, {"instruction": ""},
        {"image": "", "caption": ""}, {"images": [], "annotations": []},
    ]  # fmt: skip
    assert all(nearest_format(shape) in FORMATS for shape in shapes)
    assert nearest_format({"text": ""}) is None


def test_a_video_as_a_list_of_frames_becomes_its_frames():
    (row,) = converted("messages", CASES / "24" / "row0.jsonl")
    parsed = parse_row(row, "f:1")
    assert len(parsed.images) == 9
    assert parsed.turns[0].value.startswith("Frame1: <image>\nFrame2: <image>\n")
    assert parsed.turns[0].value.endswith("Frame9: <image>What happens?")


def test_images_as_objects_with_a_path_are_read():
    for number, name in ((1, "clip_5.png"), (2, "clip_9.png"), (3, "clip_9.png")):
        (row,) = converted("messages", CASES / "24" / f"row{number}.jsonl")
        assert parse_row(row, "f:1").images == (name,)


def test_a_turn_that_is_not_to_be_learnt_is_not_learnt(tmp_path):
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello.", "loss": False}]
    (tmp_path / "in.jsonl").write_text(json.dumps({"messages": messages}))
    (row,) = converted("messages", tmp_path / "in.jsonl")
    assert parse_row(row, "f:1").weights == (0.0,)


def test_files_of_other_kinds_in_a_folder_of_images_are_counted(tmp_path, caplog):
    for name in ("a.jpg", "a.txt", "b.heic", "c.svg", "notes.md", ".hidden"):
        (tmp_path / name).write_text("A cup.")
    assert len(converted("imagefolder", tmp_path)) == 1
    assert "3 files left out" in caplog.text and ".heic 1" in caplog.text
