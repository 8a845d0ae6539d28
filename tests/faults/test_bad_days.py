"""What happens to machines: signals, full disks, hung processes, losses that are no numbers, images that vanish."""

import json
import shutil
import signal
import subprocess
import time

import pytest
import torch
from safetensors.torch import load_file

from internvl.train.checkpointing import list_checkpoints, verify_manifest, write_manifest
from tests.faults.runs import BATCHES
from tests.faults.test_kills import digest


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGUSR1))]
)
def test_a_signal_saves_and_the_same_command_continues(train, tmp_path, number, processes):
    whole, folder, log = tmp_path / "whole", tmp_path / "stopped", tmp_path / "log.txt"
    assert train(whole, processes) == 0
    others: list[int] = []
    status = train(folder, processes, {"batch": 6, "signal": int(number)}, statuses=others)
    assert {status, *others} == {128 + number}, log.read_text()[-3000:]
    assert [path.name for path in list_checkpoints(folder)][0] == "checkpoint-3"
    assert f"{number.name}: saving checkpoint-3" in log.read_text()
    assert not (folder / "adapter_model.safetensors").exists()
    assert train(folder, processes) == 0
    assert digest(folder) == digest(whole)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 0.7 MB: room for two checkpoints of the tiny base, not for three."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"needs to mount a file system, which is not allowed here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_ends_with_a_message_and_the_last_good_checkpoint(train, small_disk, tmp_path):
    log = tmp_path / "log.txt"
    assert train(small_disk / "run") == 2
    said = log.read_text()
    assert "could not be written" in said and "Make room" in said and "Traceback" not in said, said[-3000:]
    kept, *older = list_checkpoints(small_disk / "run")
    assert all(verify_manifest(folder) is None for folder in (kept, *older))
    assert f"The last good checkpoint is {kept}" in said
    assert not (small_disk / "run" / ".saving").exists()
    # With room, the same command goes on from it.
    shutil.copytree(small_disk / "run", tmp_path / "run")
    whole = tmp_path / "whole"
    assert train(whole) == 0 and train(tmp_path / "run", flags=("--output_dir", str(tmp_path / "run"))) == 0
    assert digest(tmp_path / "run") == digest(whole)


def test_a_loss_that_is_no_number_stops_the_training_and_names_its_rows(train, tmp_path, rows_folder):
    folder, log = tmp_path / "run", tmp_path / "log.txt"
    assert train(folder, 2, {"nan": 5}) == 2
    said = log.read_text()
    assert "step 5: the loss is not a number. It came with " in said and "train.jsonl:" in said
    assert "Traceback" not in said
    assert verify_manifest(list_checkpoints(folder)[0]) is None


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_such_a_step_can_be_left_out(train, tmp_path, processes):
    folder = tmp_path / "run"
    assert train(folder, processes, {"nan": 5}, ("--on_nan", "skip")) == 0
    assert json.loads((folder / "data_report.json").read_text())["skipped_steps"] == [5]
    assert all(tensor.isfinite().all() for tensor in load_file(folder / "adapter_model.safetensors").values())
    # The step left no trace in the weights: only the optimizer's own count of steps is one less.
    whole = tmp_path / "whole"
    assert train(whole, processes) == 0
    assert digest(folder) != digest(whole)


def test_what_was_left_out_before_a_kill_is_reported_at_the_end(train, tmp_path):
    folder, flags = tmp_path / "run", ("--on_nan", "skip")
    assert train(folder, 1, {"nan": 1, "batch": BATCHES - 1}, flags) == -signal.SIGKILL
    assert train(folder, 1, flags=flags) == 0
    assert "Continuing from" in (tmp_path / "log.txt").read_text()
    assert json.loads((folder / "data_report.json").read_text())["skipped_steps"] == [1]


def test_an_image_that_vanishes_is_skipped_and_named(train, rows_folder, tmp_path):
    rows = tmp_path / "rows"
    shutil.copytree(rows_folder, rows)
    meta = {"rows": {"root": str(rows), "annotation": str(rows / "train.jsonl")}}
    (rows / "meta.json").write_text(json.dumps(meta))
    victim = rows / "images" / "image_000004.png"
    flags = ("--meta_path", str(rows / "meta.json"), "--max_bad_fraction", "0.5", "--dataloader_num_workers", "1")
    assert train(tmp_path / "run", 1, {"batch": 1, "remove": str(victim)}, flags) == 0
    skipped = json.loads((tmp_path / "run" / "data_report.json").read_text())["skipped"]
    assert skipped and all("image_000004.png: there is no such image" in row["reason"] for row in skipped)


def test_a_hung_process_ends_all_in_time_and_is_named(train, tmp_path):
    started = time.monotonic()
    status = train(tmp_path / "run", 2, {"batch": 5, "signal": int(signal.SIGSTOP)}, ("--ddp_timeout", "10"), victim=1)
    said = (tmp_path / "log.txt").read_text()
    assert status == 1 and time.monotonic() - started < 60
    assert "process 1 is behind" in said, said[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ((), "optimizer.pt"),
        (("--deepspeed", "shell/deepspeed/zero_stage1_config.json"), "zero_pp_rank_0_mp_rank_00_optim_states.pt"),
        (("--deepspeed", "shell/deepspeed/zero_stage3_config.json"), "zero_pp_rank_0_mp_rank_00_model_states.pt"),
    ],
    ids=["plain", "ZeRO-1", "ZeRO-3"],
)
def test_checkpoints_of_a_training_are_never_unpickled(train, tmp_path, flags, name):
    folder, log = tmp_path / "run", tmp_path / "log.txt"
    processes = 2 if flags else 1
    assert train(folder, processes, {"batch": BATCHES}, flags) == -signal.SIGKILL
    newest = list_checkpoints(folder)[0]
    [file] = newest.rglob(name)

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    content = torch.load(file, weights_only=False)
    torch.save({**content, "state": Evil()}, file)
    (newest / "complete.json").unlink()
    write_manifest(newest)
    assert train(folder, processes, flags=flags) != 0
    assert not (tmp_path / "pwned").exists() and "weights_only" in log.read_text()
