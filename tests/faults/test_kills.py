"""Processes killed anywhere: only the steps since the last checkpoint are lost, and nothing torn is read as good.

The short form runs by default. ``INTERNVL_KILLS=50 pytest tests/faults/test_kills.py`` is the long one: so many kills
over training, and two fifths of that inside checkpoint writing and inside merging each.
"""

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from internvl.model.loading import load_model
from internvl.train.checkpointing import MANIFEST, list_checkpoints, verify_manifest
from tests.faults.runs import BATCHES

KILLS = int(os.environ.get("INTERNVL_KILLS", "5"))
KILLS_IN_WRITES = max(3, KILLS * 2 // 5)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def check_folder(folder: Path) -> None:
    """What is in an output folder that a kill left: whole checkpoints, and a whole adapter or none."""
    for checkpoint in list_checkpoints(folder):
        assert verify_manifest(checkpoint) is None, f"{checkpoint} is there and not whole"
    if (folder / "adapter_model.safetensors").exists():
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as reader:
            assert all(reader.get_tensor(name).isfinite().all() for name in reader.keys())  # noqa: SIM118


def finish_and_compare(train, folder: Path, expected: str, processes: int, log: Path) -> None:
    status = train(folder, processes)
    assert status == 0, log.read_text()[-3000:]
    assert digest(folder) == expected, "the adapter is not that of the uninterrupted training"
    assert not (folder / ".saving").exists()


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_training_killed_at_random_steps_ends_as_an_uninterrupted_one(train, tmp_path, processes):
    rng = random.Random(processes)
    whole = tmp_path / "whole"
    assert train(whole, processes) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    expected, killed, number = digest(whole), 0, 0
    while killed < (KILLS + 1) // 2:
        folder = tmp_path / f"killed-{number}"
        number += 1
        for _ in range(3):
            if train(folder, processes, {"batch": rng.randint(1, BATCHES)}) == -9:
                killed += 1
            if folder.exists():
                check_folder(folder)
        finish_and_compare(train, folder, expected, processes, tmp_path / "log.txt")
        shutil.rmtree(folder)
    print(f"{killed} kills over training with {processes} processes, {number} trainings, all bit-equal")


DIVIDED = {
    **{f"ZeRO-{n}": ("--deepspeed", f"shell/deepspeed/zero_stage{n}_config.json") for n in (1, 2, 3)},
    "FSDP2": ("--fsdp", "True", "--fsdp_config", "shell/fsdp/fsdp2_config.json"),
}


@pytest.mark.slow
@pytest.mark.parametrize("flags", DIVIDED.values(), ids=DIVIDED)
def test_a_killed_training_whose_weights_are_divided_ends_as_an_uninterrupted_one(train, tmp_path, flags):
    plain, whole, folder, log = (tmp_path / name for name in ("plain", "whole", "killed", "log.txt"))
    fsdp = {"fsdp": True} if "--fsdp" in flags else {}
    assert train(plain, 2) == 0
    assert train(whole, 2, flags=flags, all_ranks=fsdp) == 0, log.read_text()[-3000:]
    assert train(folder, 2, {"batch": BATCHES - 1}, flags, all_ranks=fsdp) == -9, log.read_text()[-3000:]
    check_folder(folder)
    assert train(folder, 2, flags=flags, all_ranks=fsdp) == 0, log.read_text()[-3000:]
    assert "Continuing from " in log.read_text()
    assert digest(folder) == digest(whole)
    divided, undivided = (load_file(run / "adapter_model.safetensors") for run in (whole, plain))
    assert divided.keys() == undivided.keys()
    assert all(torch.allclose(divided[name], undivided[name], atol=1e-4, rtol=0) for name in divided)
    sizes = {run: sum(file.stat().st_size for file in run.rglob("checkpoint-*/**/*")) for run in (whole, plain)}
    assert sizes[whole] < 2 * sizes[plain], "frozen weights are not written"


def test_a_kill_inside_the_writing_of_a_checkpoint_leaves_no_torn_one(train, tmp_path):
    rng = random.Random(7)
    whole = tmp_path / "whole"
    assert train(whole) == 0
    expected, killed, number = digest(whole), 0, 0
    while killed < KILLS_IN_WRITES:
        folder = tmp_path / f"killed-{number}"
        number += 1
        for _ in range(2):
            if train(folder, 1, {"write": rng.randint(1, 60), "below": str(folder)}) == -9:
                killed += 1
            if folder.exists():
                check_folder(folder)
        finish_and_compare(train, folder, expected, 1, tmp_path / "log.txt")
        shutil.rmtree(folder)
    print(f"{killed} kills inside the writing of checkpoints and results, {number} trainings, all bit-equal")


@pytest.mark.parametrize(
    "damage", ["cut", *(pytest.param(damage, marks=pytest.mark.slow) for damage in ("flipped", "lost", "unlisted"))]
)
def test_a_damaged_checkpoint_is_seen_and_the_one_before_used(train, tmp_path, damage):
    whole, folder = tmp_path / "whole", tmp_path / "damaged"
    assert train(whole) == 0
    assert train(folder, 1, {"batch": BATCHES}) == -9
    newest, older = list_checkpoints(folder)
    victim = newest / ("optimizer.pt" if damage != "unlisted" else MANIFEST)
    content = bytearray(victim.read_bytes())
    if damage == "cut":
        victim.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    else:
        victim.unlink()
    (tmp_path / "log.txt").unlink()
    finish_and_compare(train, folder, digest(whole), 1, tmp_path / "log.txt")
    said = (tmp_path / "log.txt").read_text()
    assert f"{newest}: is damaged" in said and f"Continuing from {older}" in said


def test_a_finished_training_does_nothing_and_another_command_is_refused(train, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log.txt"
    assert train(folder) == 0
    stamp = (folder / "adapter_model.safetensors").stat().st_mtime_ns
    assert train(folder) == 0
    assert "this training is finished" in log.read_text()
    assert train(folder, flags=("--learning_rate", "2e-3")) == 2
    said = log.read_text()
    assert "--learning_rate: 0.001 then, 0.002 now" in said and "--overwrite_output_dir True" in said
    assert "Traceback" not in said
    assert (folder / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    assert train(folder, flags=("--learning_rate", "2e-3", "--overwrite_output_dir", "True")) == 0


def test_other_rows_in_the_same_file_are_another_training(runs, train, rows_folder, tmp_path):
    folder, rows = tmp_path / "run", tmp_path / "rows"
    shutil.copytree(rows_folder, rows)
    meta = {"rows": {"root": str(rows), "annotation": str(rows / "train.jsonl")}}
    (rows / "meta.json").write_text(json.dumps(meta))
    flags = ("--meta_path", str(rows / "meta.json"))
    assert train(folder, 1, {"batch": 7}, flags) == -9
    lines = (rows / "train.jsonl").read_text().splitlines(keepends=True)
    (rows / "train.jsonl").write_text("".join(lines[:-1]))
    assert train(folder, flags=flags) == 2
    assert "data rows: " in (tmp_path / "log.txt").read_text()


def test_a_kill_inside_merging_leaves_no_torn_model(runs, trained_adapter, tmp_path):
    rng, log = random.Random(11), tmp_path / "log.txt"
    reference = tmp_path / "reference"

    def merge(out: Path, die: dict | None = None, *flags: str) -> int:
        argv = [str(trained_adapter), str(out), "--skip-self-check", *flags]
        return runs.start("merge", argv, log, die).wait()

    assert merge(reference) == 0, log.read_text()
    expected = {file.name: file.read_bytes() for file in reference.iterdir()}
    killed = 0
    for number in range(200):
        if killed >= KILLS_IN_WRITES:
            break
        out = tmp_path / f"out-{number}"
        replaced = number % 2 == 1  # in every second one, an earlier result is replaced
        if replaced:
            shutil.copytree(reference, out)
        die = {"write": rng.randint(1, 40), "below": str(tmp_path)}
        killed += merge(out, die, "--overwrite") == -9
        if out.exists() and any(out.iterdir()):
            assert {file.name: file.read_bytes() for file in out.iterdir()} == expected, "torn"
        assert merge(out, None, "--overwrite") == 0, log.read_text()[-2000:]
        assert {file.name: file.read_bytes() for file in out.iterdir()} == expected
        for left in tmp_path.glob("*out-*"):
            shutil.rmtree(left)
    assert killed >= KILLS_IN_WRITES
    load_model(reference)
    print(f"{killed} kills inside merging, none left a torn model")
