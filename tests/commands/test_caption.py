"""Captioning files: answers are the engine's, bad files are listed, runs continue, and the output is training data."""

import csv
import errno
import json

import pytest

from internvl.commands import caption
from internvl.data.annotation import AnnotationFile
from internvl.errors import UserError
from internvl.evaluation.answers import AnswerLog
from internvl.inference.engine import Engine, Request
from tests.conftest import make_image

FLAGS = ["--max-new-tokens", "6", "--max-num", "2", "--prompt", "Describe it."]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for number, name in enumerate(["a.png", "b.jpg", "deeper/c.png"]):
        make_image(60 + 40 * number, 60, number).save(folder / name)
    (folder / "broken.jpg").write_bytes((folder / "b.jpg").read_bytes()[:200])
    (folder / "notes.md").write_text("not a picture")
    return folder


def rows(file) -> dict[str, str]:
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {row["image"]: row["conversations"][1]["value"] for row in found}


def test_a_folder_is_captioned_and_a_broken_file_is_listed(tiny_base, photos, tmp_path, caplog, capsys):
    out = tmp_path / "out.jsonl"
    caption.main([str(tiny_base), str(photos), "--out", str(out), *FLAGS, "--save-table", str(tmp_path / "out.csv")])
    engine = Engine.load(tiny_base, precision="fp32", device="cpu", max_tiles=2)
    expected = {
        name: engine.answer(
            [Request([engine.read(photos / name)], "Describe it.")], max_new_tokens=6, do_sample=False
        )[0]
        for name in ("a.png", "b.jpg", "deeper/c.png")
    }
    assert rows(out) == expected
    assert sum("Left out: " in record.message and "broken.jpg" in record.message for record in caplog.records) == 1
    assert f"root {photos}" in capsys.readouterr().out
    parsed = AnnotationFile(out)
    assert [parsed.row(number).images for number in range(3)] == [("a.png",), ("b.jpg",), ("deeper/c.png",)]
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as stream:
        table = list(csv.reader(stream))
    assert table[0] == ["file", "prompt", "answer"] and [line[2] for line in table[1:]] == [*expected.values()]
    assert not list(tmp_path.glob("unfinished-*"))


def test_lists_name_files_from_their_own_folder_and_may_ask_something_else(tiny_base, photos, tmp_path):
    (photos / "list.txt").write_text("a.png\n\ndeeper/c.png\n")
    lines = [{"image": "b.jpg", "prompt": "What colour?"}, {"image": "a.png"}]
    (photos / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out.jsonl"
    caption.main([str(tiny_base), str(photos / "list.txt"), str(photos / "list.jsonl"), "--out", str(out), *FLAGS])
    asked = [json.loads(line)["conversations"][0]["value"] for line in out.read_text().splitlines()]
    assert asked == ["<image>\nDescribe it.", "<image>\nDescribe it.", "<image>\nWhat colour?"]  # a.png is named twice


def test_a_stopped_run_goes_on(tiny_base, photos, tmp_path, monkeypatch, caplog):
    out, flags = tmp_path / "out.jsonl", [*FLAGS, "--batch-size", "1"]
    add, left = AnswerLog.add, [2]

    def add_twice(log, answers):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        add(log, answers)

    monkeypatch.setattr(AnswerLog, "add", add_twice)
    with pytest.raises(SystemExit):
        caption.main([str(tiny_base), str(photos), "--out", str(out), *flags])
    assert not out.exists()
    left[0] = 1  # of three answers, one is left to be made
    caption.main([str(tiny_base), str(photos), "--out", str(out), *flags])
    assert len(rows(out)) == 3 and "Continuing: 2 of 3 are answered already." in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "list.jsonl",
            '{"image": "a.png", "video": "b.mp4"}',
            "list.jsonl:1: is .* not an object with one image or video",
        ),
        ("list.jsonl", "[1]", "list.jsonl:1: is "),
        ("list.jsonl", "{", "list.jsonl:1: is not valid JSON"),
        ("list.jsonl", '{"image": "a.png", "prompt": 3}', "list.jsonl:1: prompt is 3"),
        ("notes.md", "x", "notes.md: is neither an image, a video, a folder, nor a list"),
    ],
)
def test_inputs_that_are_none_are_refused(photos, name, content, message):
    (photos / name).write_text(content)
    with pytest.raises(UserError, match=message):
        caption.find_items([photos / name], "What?")


def test_a_list_of_another_encoding_is_named_by_its_line(photos):
    (photos / "list.jsonl").write_bytes('{"image": "a.png"}\n{"image": "ä.png"}\n'.encode("latin-1"))
    with pytest.raises(UserError, match="list.jsonl:2: is not UTF-8 text"):
        caption.find_items([photos / "list.jsonl"], "What?")


def test_answers_are_kept_until_they_are_written(tiny_base, photos, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    command = [str(tiny_base), str(photos), "--out", str(out), *FLAGS]

    def fill_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(out))

    with monkeypatch.context() as full:
        full.setattr(caption, "write_lines", fill_disk)
        with pytest.raises(SystemExit):
            caption.main(command)
    monkeypatch.setattr(AnswerLog, "add", lambda *_: pytest.fail("answered again"))
    caption.main(command)
    assert len(rows(out)) == 3


def test_a_file_that_is_there_is_kept(photos, tmp_path, capsys):
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(SystemExit):
        caption.main(["nowhere", str(photos), "--out", str(tmp_path / "out.jsonl")])
    assert "is there already" in capsys.readouterr().err and (tmp_path / "out.jsonl").read_text() == "mine"


def test_of_several_answers_one_is_chosen_or_all_are_written(tiny_base, photos, tmp_path, monkeypatch):
    flags = [*FLAGS, "--num-samples", "3", "--temperature", "1.5"]
    caption.main([str(tiny_base), str(photos), "--out", str(tmp_path / "one.jsonl"), *flags])
    chosen = rows(tmp_path / "one.jsonl")
    caption.main([str(tiny_base), str(photos), "--out", str(tmp_path / "all.jsonl"), *flags, "--choose", "all"])
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 9 and [line["id"] for line in lines] == list(range(9))
    for name, text in chosen.items():
        assert text in [line["conversations"][1]["value"] for line in lines if line["image"] == name]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num-samples", "0"], "--num-samples: is 0. Give 1 or more"),
        (["--num-samples", "2"], "--num-samples: is 2, of which none has more agreement"),
        (["--num-samples", "3", "--num-beams", "2"], "--num-beams: is 2, and --num-samples draws"),
        (["--num-samples", "3", "--engine", "vllm"], "--engine vllm gives one answer"),
        (["--num-samples", "3", "--temperature", "0"], "--temperature: is 0.0"),
    ],
)
def test_settings_of_several_answers_that_do_not_go_together_are_refused(tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit):
        caption.main(["MODEL", "photos", "--out", str(tmp_path / "out.jsonl"), *flags])
    assert words in capsys.readouterr().err
