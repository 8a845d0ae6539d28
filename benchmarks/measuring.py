"""Running a command and measuring it from outside, for the benchmarks."""

import os
import subprocess
import time
from pathlib import Path
from typing import NamedTuple


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
