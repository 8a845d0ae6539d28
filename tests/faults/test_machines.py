"""Machines as people have them: pods with ranks of their own, users without a home, checkouts with CRLF."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from internvl import distributed
from internvl.data import check_cache
from internvl.evaluation import java_scorers
from tests.conftest import REPOSITORY

RANKS = {
    "of a pod": {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "23456"},
    "without an address": {"RANK": "0", "WORLD_SIZE": "2"},
    "empty": {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": ""},
}


@pytest.mark.parametrize("ranks", RANKS.values(), ids=RANKS)
def test_ranks_that_torchrun_did_not_set_are_not_believed(monkeypatch, caplog, ranks):
    monkeypatch.delenv(distributed.SET_BY_TORCHRUN, raising=False)
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    assert distributed.rank_and_world_size() == (0, 1) and distributed.is_main_process()
    with caplog.at_level(logging.WARNING):
        distributed.ignore_foreign_ranks()
    assert not any(name in os.environ for name in distributed.RANK_VARIABLES)
    assert ("this process works alone" in caplog.text) == (ranks["WORLD_SIZE"] == "2")


def test_ranks_of_torchrun_are_believed(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", distributed.SET_BY_TORCHRUN: "none"}.items():
        monkeypatch.setenv(name, value)
    distributed.ignore_foreign_ranks()
    assert distributed.rank_and_world_size() == (1, 2) and not distributed.is_main_process()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", RANKS.values(), ids=RANKS)
def test_commands_in_a_pod_speak_and_end(warm_python, tmp_path, ranks):
    """A mistake is said at once, and nothing waits for processes that never come."""
    command = [warm_python, "tools/merge_lora.py", tmp_path / "missing", tmp_path / "out"]
    process = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **ranks}, capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 2 and "there is no such checkpoint folder" in process.stderr
    evaluate = [warm_python, "eval/caption/evaluate_caption.py", "--checkpoint", "pretrained/InternVL2-Tiny"]
    process = subprocess.run(
        [*evaluate, "--datasets", "habitat", "--limit", "2", "--out-dir", tmp_path / "result"],
        cwd=REPOSITORY, env={**os.environ, **ranks}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "result" / "scores.json").is_file()


@pytest.fixture
def homeless(monkeypatch):
    """No HOME, and a user that /etc/passwd does not know."""

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("HOME", "XDG_CACHE_HOME", "INTERNVL_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)


def test_without_a_home_the_check_is_not_kept_and_says_so_once(homeless, caplog):
    assert check_cache.cache_folder() is None
    assert len(caplog.records) == 1 and "INTERNVL_CACHE names another" in caplog.text


def test_the_advice_of_that_warning_settles_it(homeless, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("INTERNVL_CACHE", str(tmp_path))
    assert check_cache.cache_folder() == tmp_path / "checks"
    assert not caplog.records


def test_a_cache_that_may_not_be_read_is_a_warning(monkeypatch, tmp_path, caplog):
    def refused(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refused)
    assert check_cache.load(tmp_path / "a.npz", None, 0) is None
    assert "cannot be read" in caplog.text


def test_a_clone_with_crlf_settings_has_lf(tmp_path):
    """As Git for Windows makes it, used from WSL or a container; only the index is needed to see it."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    if head.returncode:
        pytest.skip("needs git and the project's history")
    git = ["git", "-c", "core.autocrlf=true", "-c", "advice.detachedHead=false"]
    clone = [*git, "clone", "--quiet", "--no-hardlinks", "--depth", "1", f"file://{REPOSITORY}", tmp_path / "clone"]
    subprocess.run(clone, check=True, capture_output=True)
    listed = subprocess.run([*git, "ls-files", "--eol"], cwd=tmp_path / "clone", capture_output=True, text=True).stdout
    crlf = [line for line in listed.splitlines() if "w/crlf" in line and "-text" not in line]
    assert crlf == []
    dry_run = {**os.environ, "DRY_RUN": "1", "VIRTUAL_ENV": sys.prefix, "INTERNVL_SKIP_INSTALL": "1"}
    launchers = ["evaluate.sh pretrained/InternVL2-Tiny caption-habitat"]
    launchers.append("shell/internvl2.0/habitat_2b_finetune/lora.sh")
    for launcher in launchers:
        command = ["bash", *launcher.split()]
        environment = {**dry_run, "MODEL": "pretrained/InternVL2-Tiny"}
        process = subprocess.run(command, cwd=tmp_path / "clone", env=environment, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("name", java_scorers.JAVA_OPTIONS)
def test_java_options_of_the_machine_are_not_for_the_scorers(monkeypatch, name):
    """A heap larger than any memory, which no Java starts with."""
    monkeypatch.setenv(name, "-Xmx999999g")
    assert java_scorers.ptb_tokenize(["A cup."]) == ["a cup"]
    assert os.environ[name] == "-Xmx999999g"


@pytest.mark.slow
def test_with_nothing_but_a_path_check_train_evaluate_and_merge_run(tiny_base, rows_folder, tmp_path):
    """``env -i``: no HOME, no locale, no user. VIRTUAL_ENV only says which Python to take."""
    bare = {"PATH": os.environ["PATH"], "VIRTUAL_ENV": sys.prefix, "INTERNVL_SKIP_INSTALL": "1"}
    names = ("MODEL", tiny_base), ("META_PATH", rows_folder / "meta.json"), ("OUTPUT_DIR", tmp_path / "run")
    launcher = {**{name: str(value) for name, value in names}, "BATCH_SIZE": "4", "PER_DEVICE_BATCH_SIZE": "4"}
    lora, flags = "shell/internvl2.0/habitat_2b_finetune/lora.sh", ["--max_steps", "1", "--save_strategy", "no"]
    custom = ["--annotation", rows_folder / "train.jsonl", "--root", rows_folder, "--limit", "2"]
    commands = [
        [sys.executable, "tools/check_data.py", rows_folder / "meta.json", "--model", tiny_base],
        ["bash", lora, *flags],
        ["bash", "evaluate.sh", tmp_path / "run", "caption-custom", *custom, "--out-dir", tmp_path / "result"],
        [sys.executable, "tools/merge_lora.py", tmp_path / "run", tmp_path / "merged"],
    ]
    for command in commands:
        environment = bare | (launcher if lora in command else {})
        process = subprocess.run(
            list(map(str, command)), cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
        )
        assert process.returncode == 0, (command, process.stderr[-2000:])
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert not (REPOSITORY / "~").exists()
