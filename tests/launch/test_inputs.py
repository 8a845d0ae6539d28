"""The files that a finetune reads, asked for before anything is installed or loaded."""

import json
from types import SimpleNamespace

import pytest

from internvl.errors import UserError
from internvl.launch.inputs import check_meta_inputs, check_model_and_meta, meta_inputs


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("model/config.json", "meta.json", "zero.json"):
        (tmp_path / name).write_text("{}")
    return SimpleNamespace(
        model=str(tmp_path / "model"), meta_path=str(tmp_path / "meta.json"), deepspeed=str(tmp_path / "zero.json")
    )


def test_files_that_are_there(settings):
    check_model_and_meta(settings)
    for deepspeed in (None, ""):
        settings.deepspeed = deepspeed
        check_model_and_meta(settings)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model", "nowhere: there is no such folder. Download the checkpoint with .*download_pretrained.sh"),
        ("meta_path", "nowhere: there is no such file. Set META_PATH"),
        ("deepspeed", "nowhere: there is no such file. Set DEEPSPEED"),
    ],
)
def test_a_file_that_is_not_there_is_named(settings, name, message):
    setattr(settings, name, "nowhere")
    with pytest.raises(UserError, match=message):
        check_model_and_meta(settings)


def test_a_folder_that_is_not_a_checkpoint_is_refused(settings, tmp_path):
    settings.model = str(tmp_path)
    with pytest.raises(UserError, match="holds no config.json, so it is not a checkpoint"):
        check_model_and_meta(settings)


def test_what_a_meta_file_names(tmp_path):
    meta = {"a": {"annotation": ["1.jsonl", 2], "root": "r"}, "two\nlines": {"annotation": "3.jsonl", "root": ""}}
    (tmp_path / "meta.json").write_text(json.dumps(meta), encoding="utf-8-sig")
    assert list(meta_inputs(str(tmp_path / "meta.json"))) == [
        ("annotation", "1.jsonl", "a"), ("root", "r", "a"), ("annotation", "3.jsonl", "two\nlines"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": {"annotation": "no.jsonl"}}', r"meta.json:a: its annotation 'no.jsonl' is not there"),
        (b'{"a": {"annotation": "\\ud800"}}', r":a: its annotation .* is not there"),
        (b'{\n"a": }', r"meta.json:2: is not valid JSON"),
        (b"[1]", r"meta.json: expected an object of data sets"),
        (b'{"a": 1}', r"meta.json: expected an object of data sets"),
        (b'{"\xff": {}}', r"meta.json: byte 2 is not UTF-8"),
        (b"[" * 100_000, r"meta.json: is nested too deeply"),
    ],
)
def test_a_meta_file_that_does_not_fit_is_refused(tmp_path, content, message):
    (tmp_path / "meta.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        check_meta_inputs(str(tmp_path / "meta.json"))
