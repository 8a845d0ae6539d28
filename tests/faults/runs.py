"""Trainings in forks of a process that has imported everything, so that dozens of them take minutes."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

BATCHES = 12  # micro-batches of a training: 6 steps of 2
FLAGS = [
    "--max_steps", "6", "--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "2", "--seed", "3",
    "--freeze_llm", "True", "--freeze_mlp", "True", "--freeze_backbone", "True", "--use_llm_lora", "8",
    "--lora_dropout", "0.1", "--learning_rate", "1e-3", "--share_image_prefix", "True", "--packing", "True",
    "--use_cpu", "True", "--report_to", "none", "--logging_steps", "1",
]  # fmt: skip


class Runs:
    """Starts commands in forks of a process that has imported them already."""

    def __init__(self):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert json.loads(self.server.stdout.readline()) == "ready"

    def ask(self, request: dict) -> object:
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(self, entry: str, argv: list[str], log: Path, fault: dict | None = None, **env: str) -> int:
        return self.ask({"entry": entry, "argv": argv, "env": env, "log": str(log), "fault": fault or {}})

    def wait(self, pid: int) -> int:
        return self.ask({"wait": pid})

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait(30)


@pytest.fixture(scope="session")
def runs():
    started = Runs()
    yield started
    started.close()


@pytest.fixture
def train(runs, tiny_base, rows_folder, tmp_path):
    """``train(folder, processes, fault)`` runs a training and returns an exit status.

    The fault comes over one process, ``victim`` or one drawn; the status is that process's. One that is killed is
    taken for its machine: the others are killed, too. ``statuses``, a list, gets those of all.
    """

    def run(
        folder: Path,
        processes: int = 1,
        fault: dict | None = None,
        flags: tuple[str, ...] = (),
        victim: int | None = None,
        statuses: list[int] | None = None,
    ) -> int:
        argv = ["--model_name_or_path", str(tiny_base), "--meta_path", str(rows_folder / "meta.json")]
        argv += ["--output_dir", str(folder), "--per_device_train_batch_size", str(4 // processes), *FLAGS]
        argv += ["--gradient_accumulation_steps", "2", *flags]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        if victim is None:
            victim = random.randrange(processes) if fault else 0
        pids = []
        for rank in range(processes):
            env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes), "RANK": str(rank)}
            env |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
            own = fault if rank == victim else None
            pids.append(runs.start("finetune", argv, tmp_path / "log.txt", own, **(env if processes > 1 else {})))
        if (fault or {}).get("signal") == signal.SIGSTOP:
            ended = [runs.wait(pid) for rank, pid in enumerate(pids) if rank != victim]
            os.kill(pids[victim], signal.SIGKILL)  # as torchrun does with what is left
            return ended[0]
        status = runs.wait(pids[victim])
        for rank, pid in enumerate(pids):
            if rank != victim:
                if status == -signal.SIGKILL:
                    os.kill(pid, signal.SIGKILL)
                other = runs.wait(pid)
                if statuses is not None:
                    statuses.append(other)
        return status

    return run
