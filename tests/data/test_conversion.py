"""Rows from other tools' annotations, against rows written by hand, and back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl.data.annotation import parse_row
from internvl.data.conversation_formats import from_messages
from internvl.data.conversion import Options, read_rows, to_messages, write_lines
from internvl.data.problems import RowError
from internvl.errors import UserError


def turns(question: str, answer: str, system: str | None = None) -> list[dict]:
    head = [{"from": "system", "value": system}] if system else []
    return [*head, {"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def write(path, content) -> None:
    text = content if isinstance(content, (str, bytes)) else json.dumps(content)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def rows(name: str, path, **options) -> list[dict | RowError]:
    return [row for row, _ in read_rows(name, path, Options(**options))]


LLAVA = [
    {"id": "a", "image": "a.jpg", "conversations": turns("<image>\nWhat?", "A cup.")},
    {"id": "b", "conversations": turns("Hi.", "Hello. 你好")},
]


@pytest.mark.parametrize("form", ["array", "lines", "array behind a mark"])
def test_llava_rows_are_kept_as_they_are(tmp_path, form):
    text = "\n".join(map(json.dumps, LLAVA)) if form == "lines" else json.dumps(LLAVA, indent=1)
    write(tmp_path / "in.json", ("\ufeff" if "mark" in form else "") + text)
    assert rows("llava", tmp_path / "in.json") == LLAVA


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {"messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cup."}],
             "images": ["a.jpg"]},
            {"image": "a.jpg", "conversations": turns("<image>What?", "A cup.")},
        ),
        (  # the older keys: one image, and the system prompt beside the messages
            {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cup."}],
             "image": "a.jpg", "system": "Short."},
            {"image": "a.jpg", "conversations": turns("<image>\nWhat?", "A cup.", "Short.")},
        ),
        (  # no mark at all: before the first question, as ms-swift does
            {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Cups."}],
             "images": ["a.jpg", "b.jpg"]},
            {"image": ["a.jpg", "b.jpg"], "conversations": turns("<image>\n<image>\nWhat?", "Cups.")},
        ),
        (
            {"id": 3, "messages": [{"role": "system", "content": "Short."}, {"role": "user", "content": "<video>Hm?"},
                                   {"role": "assistant", "content": "Yes."}], "videos": ["a.mp4"]},
            {"id": 3, "video": "a.mp4", "conversations": turns("<video>Hm?", "Yes.", "Short.")},
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.jpg"}},
                                                       {"type": "text", "text": "What?"}]},
                          {"role": "assistant", "content": [{"type": "text", "text": "A cup."}]}]},
            {"image": "a.jpg", "conversations": turns("<image>What?", "A cup.")},
        ),
    ],
)  # fmt: skip
def test_messages_become_rows(tmp_path, record, expected):
    write(tmp_path / "in.jsonl", record)
    assert rows("messages", tmp_path / "in.jsonl") == [expected]


def test_sharegpt_becomes_rows(tmp_path):
    record = {"conversations": turns("<image>What?", "A cup."), "system": "Short.", "images": ["a.jpg"], "id": 1}
    write(tmp_path / "in.json", [record])
    expected = {"id": 1, "image": "a.jpg", "conversations": turns("<image>What?", "A cup.", "Short.")}
    assert rows("sharegpt", tmp_path / "in.json") == [expected]


def test_coco_captions_become_a_row_each(tmp_path):
    content = {
        "images": [{"id": 7, "file_name": "a.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 7, "caption": " A cup\n on a table. "},
            {"id": 2, "image_id": 8, "caption": "?"},
        ],
    }
    write(tmp_path / "in.json", content)
    good, bad = rows("coco", tmp_path / "in.json", prompt="Say.")
    assert good == {"id": 1, "image": "a.jpg", "conversations": turns("<image>\nSay.", "A cup on a table.")}
    assert "annotation 2: image_id 8 is not among the images" in str(bad)


def test_real_coco_captions_become_rows(shared):
    found = rows("coco", shared / "coco_mini" / "captions_val2017.json")
    assert len(found) == len(json.loads((shared / "coco_mini" / "captions_val2017.json").read_text())["annotations"])
    assert not any(isinstance(row, RowError) for row in found)


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_tables_become_rows(tmp_path, delimiter):
    write(tmp_path / "a.csv", f'image{delimiter}caption\na.jpg{delimiter}"A {delimiter} cup"\nb.jpg{delimiter}\n')
    good, bad = rows("csv", tmp_path / "a.csv", delimiter=delimiter, prompt="Say.")
    assert good == {"image": "a.jpg", "conversations": turns("<image>\nSay.", f"A {delimiter} cup")}
    assert f"{tmp_path}/a.csv:3: turn 2 is an empty answer" in str(bad)
    write(tmp_path / "b.csv", "image,question,answer\na.jpg,What?,A cup\n")
    assert rows("csv", tmp_path / "b.csv")[0]["conversations"] == turns("<image>\nWhat?", "A cup")


def test_an_answer_of_several_lines_keeps_them_and_a_caption_does_not(tmp_path):
    write(tmp_path / "a.csv", 'image,question,answer\na.jpg,What?,"1. a\n2. b"\n')
    assert rows("csv", tmp_path / "a.csv")[0]["conversations"] == turns("<image>\nWhat?", "1. a\n2. b")
    write(tmp_path / "b.csv", 'image,caption\na.jpg," A\ncup "\n')
    assert rows("csv", tmp_path / "b.csv", prompt="Say.")[0]["conversations"] == turns("<image>\nSay.", "A cup")


@pytest.mark.parametrize("line", ["a.jpg,A cup, red", "a.jpg"])
def test_a_line_of_more_or_fewer_cells_than_columns_is_not_cut_but_named(tmp_path, line):
    write(tmp_path / "a.csv", f"image,caption\n{line}\nb.jpg,A cup\n")
    bad, good = rows("csv", tmp_path / "a.csv")
    assert f"{tmp_path}/a.csv:2: has more or fewer cells than the 2 columns" in str(bad) and good["image"] == "b.jpg"


def test_long_cells_and_windows_line_ends_are_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"image,caption\r\na.jpg," + b"x" * 200_000 + b"\r\n")
    (row,) = rows("csv", tmp_path / "a.csv")
    assert row["conversations"][1]["value"] == "x" * 200_000


@pytest.mark.parametrize("note", [{"id": 1, "image_id": 7}, {"id": 1, "image_id": 7, "caption": None}, "x"])
def test_an_annotation_without_caption_is_one_bad_row(tmp_path, note):
    good = {"id": 2, "image_id": 7, "caption": "A cup."}
    write(tmp_path / "in.json", {"images": [{"id": 7, "file_name": "a.jpg"}], "annotations": [note, good]})
    bad, row = rows("coco", tmp_path / "in.json")
    assert "in.json:annotation 1: is" in str(bad) and row["id"] == 2


def test_a_caption_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 au lait")
    assert "a.txt: is not UTF-8 text" in str(rows("imagefolder", tmp_path)[0])


def test_images_of_subfolders_are_found_with_their_path(tmp_path):
    for name in ("b/d.png", "a.jpg", "b/c/e.JPG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        (tmp_path / name).with_suffix(".txt").write_text("A cup.")
    assert [row["image"] for row in rows("imagefolder", tmp_path)] == ["a.jpg", "b/d.png", "b/c/e.JPG"]


@pytest.mark.parametrize("form", ["metadata.csv", "metadata.jsonl", "texts"])
def test_folders_of_images_become_rows(tmp_path, form):
    (tmp_path / "a.jpg").touch()
    if form == "metadata.csv":
        write(tmp_path / form, "file_name,text\na.jpg,A cup.\n")
    elif form == "metadata.jsonl":
        write(tmp_path / form, {"file_name": "a.jpg", "text": "A cup."})
    else:
        write(tmp_path / "a.txt", "A cup.\n")
    expected = {"image": "a.jpg", "conversations": turns("<image>\nSay.", "A cup.")}
    assert rows("imagefolder", tmp_path, prompt="Say.") == [expected]


def test_an_image_without_caption_is_named(tmp_path):
    (tmp_path / "a.jpg").touch()
    assert "a.jpg: there is no caption beside it" in str(rows("imagefolder", tmp_path)[0])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("llava", '[{"id": 1}, ', r"in:item 2: is not valid JSON"),
        ("coco", '{"images": [', r"is not valid JSON"),
        ("coco", '{"images": [{"id": 1}]}', r"is not a COCO captions file"),
        ("csv", "image,words\n", r"in:1: has the columns image, words"),
        ("csv", "", r"in:1: has the columns \(none\)"),
        ("csv", "image,caption,caption\na,b,c\n", r"in:1: has the columns .* each once"),
        ("csv", 'image,caption\na.jpg,x\nb.jpg,"A cup\nc.jpg,B\n', r"in:3: is not a line of a table"),
        ("csv", b"image,caption\na.jpg,caf\xe9\n", r"in:2: is not UTF-8"),
        ("coco", json.dumps(LLAVA), r"not the form of coco. Pass --from llava"),
        ("imagefolder", "", r"is not a folder"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, message):
    write(tmp_path / "in", content)
    with pytest.raises(UserError, match=message):
        rows(name, tmp_path / "in")


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("messages", LLAVA[0], "not the form of messages. Pass --from llava"),
        ("messages", {"messages": ["Hi"]}, "message 1 is 'Hi'"),
        ("messages", {"messages": [{"role": "tool", "content": "x"}]}, "turn 1 is from 'tool'"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "part of type 'audio'"),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
            "part of type 'text'",
        ),
        ("messages", {"messages": [], "conversations": [1]}, "has the key 'conversations'"),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "image", "image": "b.jpg"}]}], "images": ["a.jpg"]},
            "as its images. Keep one",
        ),
        ("sharegpt", {"messages": []}, "Pass --from messages"),
        ("sharegpt", {"text": ""}, "conversations is None; .* which no --from is for"),
        ("sharegpt", {**LLAVA[0], "images": ["b.jpg"]}, "as its images. Keep one"),
        ("sharegpt", {**LLAVA[0], "messages": [1]}, "Pass --from messages"),
        ("llava", {**LLAVA[1], "images": ["a.jpg"]}, "Pass --from sharegpt"),
        ("llava", {"messages": []}, "Pass --from messages"),
        ("llava", [1], "is \\[1\\]|holds list"),
    ],
)
def test_rows_of_another_form_are_named_with_their_line(tmp_path, name, record, message):
    write(tmp_path / "in.jsonl", json.dumps(LLAVA[1]) + "\n" + json.dumps(record) + "\n")
    error, _ = list(read_rows(name, tmp_path / "in.jsonl", Options()))[-1]
    assert isinstance(error, RowError) and "in.jsonl:2: " in str(error)
    with pytest.raises(RowError, match=message):
        raise error


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=4), st.integers(0, 3), st.booleans(), st.none() | words)
def test_rows_survive_the_way_to_messages_and_back(pairs, num_images, is_video, system):
    conversations = [turn for pair in pairs for turn in turns(*pair)]
    mark = "<video>" if is_video else "<image>" * num_images
    conversations[0]["value"] = mark + conversations[0]["value"]
    if system:
        conversations.insert(0, {"from": "system", "value": system})
    row = {"id": 5, "width": 3, "conversations": conversations}
    if is_video:
        row["video"] = "a.mp4"
    elif num_images:
        row["image"] = "0.jpg" if num_images == 1 else [f"{number}.jpg" for number in range(num_images)]
    assert from_messages(json.loads(json.dumps(to_messages(row))), "f:1") == row


def test_a_list_of_one_image_with_its_size_survives_the_way_to_messages_and_back():
    row = {"image": ["a.jpg"], "width_list": [3], "height_list": [4], "conversations": turns("<image>What?", "A cup.")}
    assert from_messages(to_messages(row), "f:1") == row


def test_half_a_character_outside_the_texts_is_escaped(tmp_path):
    write_lines(tmp_path / "out.jsonl", [{"id": "\ud800"}, {"id": "é"}])
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == '{"id": "\\ud800"}\n{"id": "é"}\n'


def test_a_failed_conversion_leaves_nothing_behind(tmp_path):
    def failing():
        yield {"id": 1}
        raise UserError("no")

    with pytest.raises(UserError):
        write_lines(tmp_path / "out.jsonl", failing())
    assert list(tmp_path.iterdir()) == []


def pairs_of(tmp_path, name, *records):
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return [row for row, _ in read_rows(name, file, Options())]


MESSAGES = [{"role": "user", "content": "<image>What is it?"}]
GOOD, BAD = {"role": "assistant", "content": "A cat."}, {"role": "assistant", "content": "A dog."}


@pytest.mark.parametrize(
    ("source", "record"),
    [
        ("messages", {"messages": [*MESSAGES, GOOD], "rejected_response": "A dog.", "images": ["a.jpg"]}),
        ("messages", {"messages": [*MESSAGES, GOOD], "rejected_messages": [*MESSAGES, BAD], "images": ["a.jpg"]}),
        ("preferences", {"prompt": MESSAGES, "chosen": [GOOD], "rejected": [BAD], "images": ["a.jpg"]}),
        (
            "preferences",
            {
                "prompt": [
                    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
                ],
                "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}],
                "rejected": [BAD],
                "images": ["a.jpg"],
            },
        ),
        ("preferences", {"chosen": [*MESSAGES, GOOD], "rejected": [*MESSAGES, BAD], "image": "a.jpg"}),
        (
            "preferences",
            {"question": "<image>What is it?", "chosen": "A cat.", "rejected": "A dog.", "image": "a.jpg"},
        ),
        (
            "preferences",
            {
                "conversations": [{"from": "human", "value": "<image>What is it?"}],
                "chosen": {"from": "gpt", "value": "A cat."},
                "rejected": {"from": "gpt", "value": "A dog."},
                "images": ["a.jpg"],
            },
        ),
    ],
)  # fmt: skip
def test_preferences_of_every_tool_are_one_row(tmp_path, source, record):
    (row,) = pairs_of(tmp_path, source, record)
    assert row == {
        "image": "a.jpg",
        "conversations": [{"from": "human", "value": "<image>What is it?"}, {"from": "gpt", "value": "A cat."}],
        "rejected": "A dog.",
    }
    assert parse_row(row, "f:1").rejected == "A dog."
    assert from_messages(to_messages(row), "f:1") == row


def test_alpaca_preferences_join_instruction_and_input(tmp_path):
    (row,) = pairs_of(
        tmp_path, "preferences", {"instruction": "Count.", "input": "1 2", "chosen": "Two.", "rejected": "Three."}
    )
    assert [turn["value"] for turn in row["conversations"]] == ["Count.\n1 2", "Two."] and row["rejected"] == "Three."


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"prompt": "Q", "chosen": 3, "rejected": "b"}, "chosen is 3. Give a text, a turn"),
        ({"prompt": "Q", "chosen": "a", "rejected": []}, "rejected is"),
        ({"chosen": "a", "rejected": "b"}, "do not begin with one question"),
        ({"chosen": [*MESSAGES, GOOD], "rejected": [GOOD, BAD]}, "do not begin with one question"),
    ],
)
def test_damaged_preferences_are_named(tmp_path, record, words):
    (error,) = pairs_of(tmp_path, "preferences", record)
    assert isinstance(error, RowError) and words in str(error)


def test_preferences_of_another_tool_are_not_trained_on_as_they_are():
    row = {"conversations": [{"from": "human", "value": "Q"}], "chosen": "a", "rejected": "b"}
    with pytest.raises(RowError, match="--from preferences"):
        parse_row(row, "f:1")
