"""CONFIG: flags from a file, and the run of an earlier folder again."""

import json

import pytest

from internvl.errors import UserError
from internvl.launch.config import can_read, with_config
from internvl.launch.flags import Paths


@pytest.fixture
def read(tmp_path):
    """A function: name and text of a file, and what was typed → all flags."""

    def read_config(name: str, text: str, *typed: str) -> list[str]:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return with_config(name, typed, Paths(tmp_path))

    return read_config


def test_without_a_file_there_is_what_was_typed():
    assert with_config(None, ["--seed", "3"], Paths()) == with_config("", ["--seed", "3"], Paths()) == ["--seed", "3"]


def test_flags_of_yaml_are_words_as_they_are_written(read):
    text = "learning_rate: 1e-5\nuse_dora: yes\n--lora-alpha: 64\nreport_to: [tensorboard, wandb]\nseed: null\n"
    assert read("run.yaml", text) == [
        *("--learning_rate", "1e-5", "--use_dora", "yes", "--lora_alpha", "64"),
        *("--report_to", "tensorboard", "wandb"),
    ]


def test_what_is_typed_takes_the_place_of_the_file_s(read):
    text = "learning_rate: 1e-5\nlora_alpha: 64\n"
    typed = ("--learning-rate=2e-5", "--seed", "3")
    assert read("run.yaml", text, *typed) == ["--lora_alpha", "64", *typed]


def test_an_earlier_run_is_one_but_for_its_folder_and_its_machine(read):
    command = [
        *("train.py", "--model_name_or_path", "base", "--output_dir", "log/a", "--learning_rate=1e-4"),
        *("--dataloader_num_workers", "4", "--use_cpu", "True", "--overwrite_output_dir", "--seed", "-1"),
    ]
    flags = read("training_args.json", json.dumps({"command": command, "ModelArguments": {"lora_alpha": 1}}))
    assert flags == ["--model_name_or_path", "base", "--learning_rate", "1e-4", "--seed", "-1"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.yaml", "- learning_rate", r"CONFIG: .*run.yaml: holds \['learning_rate'\]. Write flags as in YAML"),
        ("run.yaml", "a: [1", "is broken YAML"),
        ("run.yaml", "lora: {alpha: 3}", r"run.yaml:lora: is \{'alpha': '3'\}"),
        ("run.json", "{", "is broken JSON"),
        ("run.json", "{}", "holds {}"),
        ("run.json", '{"seed": [[1]]}', r"run.json:seed: is \[\[1\]\]"),
    ],
)
def test_other_files_are_refused(read, name, text, message):
    with pytest.raises(UserError, match=message):
        read(name, text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="CONFIG: .*missing.yaml: cannot be read .* Name a file of flags"):
        with_config("missing.yaml", [], Paths(tmp_path))


def test_yaml_waits_for_its_package(monkeypatch):
    assert can_read("run.json") and can_read("run.yaml")
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    assert can_read("run.json") and not can_read("run.yaml")
