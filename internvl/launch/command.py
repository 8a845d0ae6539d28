"""The command that starts one process per device, and how it is shown."""

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from internvl.distributed import count_cores
from internvl.errors import UserError
from internvl.launch.settings import Nodes
from internvl.repository import REPOSITORY

# Shown in front of the command, so that it can be pasted into any shell.
SHOWN_VARIABLES = (
    "PYTHONPATH", "PYTHONUNBUFFERED", "LAUNCHER", "TOKENIZERS_PARALLELISM", "TF_CPP_MIN_LOG_LEVEL", "OMP_NUM_THREADS",
)  # fmt: skip


@dataclass(frozen=True)
class Device:
    """What computes here: ``cuda`` or ``cpu``, the precision it is best at, and how many there are (0 for a CPU)."""

    kind: str
    best_precision: str
    count: int


CPU = Device("cpu", "fp32", 0)


def detect_device(dry_run: bool) -> Device:
    """Ask torch, in a process of its own, what this machine has; a dry run without torch plans for a CPU.

    Raises:
        UserError: torch cannot say.
    """
    errors = subprocess.DEVNULL if dry_run else None
    asked = subprocess.run([sys.executable, "-m", "internvl.device"], stdout=subprocess.PIPE, stderr=errors, text=True)
    if asked.returncode == 0:
        kind, precision, count = asked.stdout.split()
        return Device(kind, precision, int(count))
    if dry_run:
        print("PyTorch is not installed yet: this is the plan for a CPU.", file=sys.stderr)
        return CPU
    raise UserError(
        f"{sys.executable}: cannot say what device this machine has (the reason is above). Repair the installation, "
        "then run this again."
    )


def prepare_device(device: Device, processes: int, dry_run: bool) -> None:
    """Check that every process has its device; on a CPU, where GPUS is any number, give each its share of the cores.

    Raises:
        UserError: there are fewer GPUs; says how many.
    """
    if device.kind == "cpu":
        # torchrun's own choice is one thread a process.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_cores() // processes)))
    elif processes > device.count and not dry_run:
        raise UserError(
            f"GPUS: {processes} asked for, and this machine has {device.count}. Set GPUS={device.count}, or "
            "CUDA_VISIBLE_DEVICES to more devices."
        )


def torchrun(processes: int, nodes: Nodes) -> list[str]:
    """Return the words that start ``processes`` processes on this node; the script follows them.

    internvl.torchrun is torchrun with the exit status of the process that failed. A signal is passed on to the
    processes, which have SHUTDOWN_SECONDS to finish their step and save a checkpoint; so have those that are left
    when one died.
    """
    return [
        sys.executable,
        "-m",
        "internvl.torchrun",
        f"--nnodes={nodes.count}",
        f"--node_rank={nodes.rank}",
        f"--master_addr={nodes.address}",
        f"--nproc_per_node={processes}",
        f"--master_port={nodes.port or _free_port()}",
        f"--shutdown_timeout={os.environ.get('SHUTDOWN_SECONDS') or 120}",
        "--signals_to_handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    ]


def _free_port() -> int:
    """Return a TCP port that nobody listens on, so that two runs on one machine do not meet."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def command_lines(command: Sequence[str]) -> str:
    """Return a command as three lines that can be pasted into any shell."""
    exports = (f" {name}={_quote(os.environ[name])}" for name in SHOWN_VARIABLES if os.environ.get(name))
    return f"cd {_quote(str(REPOSITORY))}\nexport{''.join(exports)}\n{' '.join(map(_quote, command))}"


def _quote(word: str) -> str:
    """Return a word as a shell reads it, on one line whatever it holds."""
    return shlex.quote(word) if word.isprintable() else "$'" + "".join(map(_escape, word)) + "'"


def _escape(character: str) -> str:
    """Return a character as it stands in bash's ``$'…'``."""
    if character in "'\\":
        return "\\" + character
    return character if character.isprintable() else "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
