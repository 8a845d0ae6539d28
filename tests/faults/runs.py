"""Trainings and merges with faults, in processes that start in a fraction of a second: dozens of them take minutes."""

import json
import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from internvl.distributed import SET_BY_TORCHRUN
from tests.conftest import REPOSITORY, free_port

BATCHES = 12  # micro-batches of a training: 6 steps of 2
FLAGS = [
    "--max_steps", "6", "--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "2", "--seed", "3",
    "--freeze_llm", "True", "--freeze_mlp", "True", "--freeze_backbone", "True", "--use_llm_lora", "8",
    "--lora_dropout", "0.1", "--learning_rate", "1e-3", "--share_image_prefix", "True", "--packing", "True",
    "--use_cpu", "True", "--report_to", "none", "--logging_steps", "1",
]  # fmt: skip


class Runs:
    """Starts finetunes and merges, each with a fault if there is to be one."""

    def __init__(self, python: Path):
        self.python = python

    def start(self, command: str, argv: list[str], log: Path, fault: dict | None = None, **env: str):
        with open(log, "a") as output:
            return subprocess.Popen(
                [self.python, "-m", "tests.faults.faulty", json.dumps(fault or {}), command, *argv],
                cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1", **env},
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip


@pytest.fixture(scope="session")
def runs(warm_python) -> Runs:
    return Runs(warm_python)


@pytest.fixture
def train(runs, tiny_base, rows_folder, tmp_path):
    """``train(folder, processes, fault)`` runs a training and returns an exit status.

    The fault comes over one process, ``victim`` or one drawn; the status is that process's. One that is killed is
    taken for its machine: the others are killed, too. ``statuses``, a list, gets those of all. ``all_ranks`` is what
    all processes get, and ``command`` what they run: finetune or reward.
    """

    def run(
        folder: Path,
        processes: int = 1,
        fault: dict | None = None,
        flags: tuple[str, ...] = (),
        victim: int | None = None,
        statuses: list[int] | None = None,
        all_ranks: dict | None = None,
        command: str = "finetune",
    ) -> int:
        argv = ["--model_name_or_path", str(tiny_base), "--meta_path", str(rows_folder / "meta.json")]
        argv += ["--output_dir", str(folder), "--per_device_train_batch_size", str(4 // processes), *FLAGS]
        argv += ["--gradient_accumulation_steps", "2", *flags]
        port = str(free_port())
        if victim is None:
            victim = random.randrange(processes) if fault else 0
        started = []
        for rank in range(processes):
            env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes), "RANK": str(rank)}
            env |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes), SET_BY_TORCHRUN: "none"}
            own = (all_ranks or {}) | ((fault or {}) if rank == victim else {})
            started.append(runs.start(command, argv, tmp_path / "log.txt", own, **(env if processes > 1 else {})))
        if (fault or {}).get("signal") == signal.SIGSTOP:
            ended = [process.wait() for rank, process in enumerate(started) if rank != victim]
            started[victim].kill()  # as torchrun does with what is left
            started[victim].wait()
            return ended[0]
        status = started[victim].wait()
        for rank, process in enumerate(started):
            if rank != victim:
                if status == -signal.SIGKILL:
                    process.kill()
                other = process.wait()
                if statuses is not None:
                    statuses.append(other)
        return status

    return run
