"""The two modules behind the launchers: what the device can do, and torchrun with an honest exit status."""

import os
import re
import shlex
import subprocess
import sys

from internvl.device import best_precision
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


def test_the_number_of_cores_is_not_that_of_threads(repo, run, tmp_path):
    (tmp_path / "cores.sh").write_text(f"source {shlex.quote(str(repo))}/shell/lib/common.sh; cpu_cores")
    assert int(run(tmp_path / "cores.sh", OMP_NUM_THREADS="1").stdout) == len(os.sched_getaffinity(0))


def test_importing_them_costs_nothing(repo):
    code = "import sys, internvl.device, internvl.torchrun; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repo, timeout=60).returncode == 0
