"""Trainings that are told to stop, through the launcher and through Slurm's script: they save, and go on later."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from internvl.train.checkpointing import list_checkpoints, verify_manifest
from tests.conftest import REPOSITORY
from tests.end_to_end.launching import ENVIRONMENT, LORA, launcher_environment

STEPS = 300  # about twenty seconds of training
FLAGS = ["--max_steps", str(STEPS), "--save_strategy", "steps", "--save_steps", "10", "--learning_rate", "1e-3"]


@pytest.fixture
def begin(tiny_base, rows_folder, tmp_path):
    """``begin(command, NAME=value, …)`` starts a training and returns it after its first checkpoint, with its log."""
    started = []

    def run(command: list[str], **settings: str) -> tuple[subprocess.Popen, Path]:
        log = tmp_path / f"{len(started)}.log"
        environment = launcher_environment(
            MODEL=str(tiny_base), META_PATH=str(rows_folder / "meta.json"), OUTPUT_DIR=str(tmp_path / "run"),
            BATCH_SIZE="4", PER_DEVICE_BATCH_SIZE="2", **settings,
        )  # fmt: skip
        with open(log, "w") as output:
            process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=output, stderr=output)
        started.append(process)
        limit = time.monotonic() + 120
        # A checkpoint is there: every process has trained, and so listens to signals.
        while not list_checkpoints(tmp_path / "run"):
            assert process.poll() is None and time.monotonic() < limit, log.read_text()[-3000:]
            time.sleep(0.1)
        return process, log

    yield run
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            for part in psutil.Process(process.pid).children(recursive=True):
                part.kill()
        process.kill()
        process.wait()


def check_saved(folder: Path) -> None:
    [newest, *_] = list_checkpoints(folder)
    assert verify_manifest(newest) is None and not (folder / "adapter_model.safetensors").exists()
    assert 0 < json.loads((newest / "trainer_state.json").read_text())["global_step"] < STEPS


def test_a_launcher_that_is_told_to_stop_saves_a_checkpoint(begin, tmp_path):
    process, log = begin(["bash", LORA, *FLAGS, "--dataloader_num_workers", "0"], GPUS="2")
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 128 + signal.SIGTERM, log.read_text()[-3000:]
    assert "SIGTERM: saving checkpoint-" in log.read_text() and "Traceback" not in log.read_text()
    check_saved(tmp_path / "run")


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGUSR1)],
    ids=["Ctrl-C", "Slurm"],
)
def test_a_signal_to_every_process_saves_a_checkpoint(begin, tmp_path, number):
    # As a terminal and Slurm send it: also to the workers that read images, and to torchrun, which passes it on.
    real = {"VIRTUAL_ENV": sys.prefix, "PATH": f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}"}
    process, log = begin(["bash", LORA, *FLAGS, "--dataloader_num_workers", "2"], GPUS="2", **real)
    for part in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        if part.name().startswith(("bash", "python")):
            part.send_signal(number)
    assert process.wait(120) == 128 + number, log.read_text()[-3000:]
    assert f"{number.name}: saving checkpoint-" in log.read_text() and "Traceback" not in log.read_text()
    check_saved(tmp_path / "run")


SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then printf '127.0.0.1\\n127.0.0.1\\n'; else echo "$*" >>"$REQUEUED"; fi
"""
# Starts the command on two "nodes", sends USR1 on to them as Slurm does, and ends with the worst status.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
for rank in 0 1; do SLURM_PROCID=$rank "$@" & nodes+=($!); done
trap 'kill -s USR1 "${nodes[@]}"' USR1
worst=0
for node in "${nodes[@]}"; do
    while true; do
        status=0
        wait "$node" || status=$?
        kill -0 "$node" 2>/dev/null || break
    done
    ((status <= worst)) || worst=$status
done
exit "$worst"
"""


@pytest.mark.slow
def test_a_slurm_job_is_queued_again_after_its_warning_and_continues(begin, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    job = {
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "1", "REQUEUED": str(tmp_path / "requeued"),
        "PATH": os.pathsep.join([str(programs), f"{ENVIRONMENT[0]}/bin", os.environ["PATH"]]),
    }  # fmt: skip
    command = ["bash", "shell/slurm/finetune.sh", LORA, *FLAGS, "--dataloader_num_workers", "0"]
    process, log = begin(command, **job)
    [srun] = [part for part in psutil.Process(process.pid).children() if "srun" in " ".join(part.cmdline())]
    srun.send_signal(signal.SIGUSR1)
    assert process.wait(120) == 128 + signal.SIGUSR1, log.read_text()[-3000:]
    assert "SIGUSR1: saving checkpoint-" in log.read_text()
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
    check_saved(tmp_path / "run")
    process, log = begin(command, **job)
    assert process.wait(240) == 0, log.read_text()[-3000:]
    assert "Continuing from " in log.read_text()
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
