"""The modules behind the launchers: what the machine can do, and torchrun with an honest exit status."""

import os
import re
import subprocess
import sys

from internvl.device import best_precision
from internvl.distributed import count_cores
from internvl.torchrun import exit_status


def test_best_precision():
    assert best_precision([(8, 0)]) == "bf16"
    assert best_precision([(9, 0), (7, 5)]) == "fp16"
    assert best_precision([(12, 0), (10, 0)]) == "bf16"


def test_exit_status():
    assert [exit_status(code) for code in (0, 2, -9)] == [0, 2, 137]


def test_device_line(repo):
    done = subprocess.run(
        [sys.executable, "-m", "internvl.device"], cwd=repo, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert re.fullmatch(r"(cpu fp32 0|cuda (bf16|fp16) [1-9]\d*)\n", done.stdout)


def test_the_number_of_cores_is_not_that_of_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert count_cores() == len(os.sched_getaffinity(0))


def test_importing_them_costs_nothing(repo):
    """The launcher's part runs before anything is installed: without site-packages (-S)."""
    for modules, flags in (("internvl.device, internvl.torchrun", []), ("internvl.launch.__main__", ["-S"])):
        code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, *flags, "-c", code], cwd=repo, timeout=60).returncode == 0
