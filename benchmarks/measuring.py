"""Running a command and measuring it from outside, for the benchmarks."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from internvl.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
SHOWN_LINES = 15  # of the log of a command that failed


class Measured(NamedTuple):
    """How a command ended, its wall time, and the peak resident memory of its largest process."""

    status: int
    seconds: float
    peak_mib: float


def run_measured(command: list[str | Path], **options) -> Measured:
    """Run a command to its end; ``options`` are those of ``subprocess.Popen``."""
    started = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], **options)
    # The usage of a process that was waited for covers those it waited for in turn, as a launcher does.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Measured(process.returncode, time.perf_counter() - started, usage.ru_maxrss / 1024)


def run_logged(name: str, command: list[str | Path], log: Path, **settings: str) -> Measured:
    """Run a command of the repository with this Python, its output in ``log``; ``settings`` go to its environment.

    Raises:
        UserError: it failed; its last lines are in the message.
    """
    own = str(Path(sys.executable).parent.parent)
    environment = os.environ | {"INTERNVL_SKIP_INSTALL": "1", "VIRTUAL_ENV": own} | settings
    with open(log, "w", encoding="utf-8") as output:
        measured = run_measured(command, cwd=REPOSITORY, env=environment, stdout=output, stderr=subprocess.STDOUT)
    if measured.status:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-SHOWN_LINES:])
        raise UserError(f"{name}: ended with status {measured.status}. Its last lines ({log}):\n{tail}")
    return measured
