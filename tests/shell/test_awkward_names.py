"""Names with spaces, quotes, newlines and what a shell would run: they reach the programs as they are."""

import json
import subprocess
from pathlib import Path

import pytest

LORA = "shell/internvl2.0/habitat_2b_finetune/lora.sh"
NAMES = [
    "a b",
    "it's",
    'say "hi"',
    "$(touch pwned)",
    "`touch pwned`",
    "a;touch pwned",
    "two\nlines",
    "*",
    "--flag",
    "&",
]


def command_words(stdout: str, folder: Path) -> list[str]:
    """The words of the command that a dry run prints last, as bash reads them where someone pastes it."""
    command = ["bash", "-c", f"printf '%s\\0' {stdout.splitlines()[-1]}"]
    words = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    return words.split("\0")[:-1]


def no_file_was_made(*folders: Path) -> bool:
    return not any(found for folder in folders for found in folder.rglob("pwned"))


@pytest.mark.parametrize("name", NAMES)
def test_finetune_launcher(copy, run, tmp_path, name):
    here = tmp_path / "here"
    (here / name / "model").mkdir(parents=True)
    (here / name / "model" / "config.json").write_text("{}")
    meta = here / name / "meta.json"
    meta.write_text(json.dumps({name: {"root": name, "annotation": f"{name}/rows.jsonl"}}))
    settings = {"MODEL": f"{here / name}/model", "META_PATH": str(meta), "OUTPUT_DIR": str(here / name / "out")}
    done = run(copy / LORA, "--run_name", name, cwd=here, DRY_RUN="1", **settings)
    assert done.returncode == 0, done.stderr
    words = command_words(done.stdout, copy)
    flags = dict(zip(words, words[1:], strict=False))
    assert flags["--model_name_or_path"] == settings["MODEL"]
    assert flags["--meta_path"] == settings["META_PATH"]
    assert flags["--output_dir"] == settings["OUTPUT_DIR"]
    assert flags["--run_name"] == name
    assert no_file_was_made(copy, here)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_launcher(copy, run, tmp_path, name):
    here = tmp_path / "here"
    (here / name / "model").mkdir(parents=True)
    (here / name / "rows.jsonl").touch()
    model, rows, out = (str(here / name / part) for part in ("model", "rows.jsonl", "out"))
    flags = ["--annotation", rows, "--root", str(here / name), "--out-dir", out]
    done = run(copy / "evaluate.sh", model, "caption-custom", *flags, cwd=here, DRY_RUN="1")
    assert done.returncode == 0, done.stderr
    words = command_words(done.stdout, copy)
    assert words[words.index("--checkpoint") + 1] == model
    assert words[words.index("--annotation") + 1] == rows
    assert words[words.index("--out-dir") + 1] == out
    assert no_file_was_made(copy, here)


@pytest.mark.parametrize("name", NAMES)
def test_a_task_of_an_awkward_name(copy, run, name):
    done = run(copy / "evaluate.sh", "pretrained/InternVL2-2B", f"caption-{name}", DRY_RUN="1")
    if done.returncode == 0:
        words = command_words(done.stdout, copy)
        assert words[words.index("--datasets") + 1] == name
    else:
        assert done.returncode == 2 and "Traceback" not in done.stderr
    assert no_file_was_made(copy)
