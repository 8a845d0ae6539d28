"""Running the repository's shell scripts as a user does, and reading what a finetune wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import QUICK_METEOR, REPOSITORY

LORA = "shell/internvl2.0/habitat_2b_finetune/lora.sh"
# One thread a run: tiny models are no faster with two, and tests should not depend on how many cores there are.
THREADS = "1"
HIDDEN = {"GPUS", "BATCH_SIZE", "PER_DEVICE_BATCH_SIZE", "MODEL", "META_PATH", "OUTPUT_DIR", "DRY_RUN", "PYTHONPATH"}
# The environment whose Python the scripts run with.
ENVIRONMENT = [Path(sys.prefix)]


def launcher_environment(**settings: str) -> dict[str, str]:
    """The environment of a script: what a developer may have exported is not in it, ``settings`` are."""
    environment = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    return environment | {
        "VIRTUAL_ENV": str(ENVIRONMENT[0]),
        "PATH": os.pathsep.join([f"{ENVIRONMENT[0]}/bin", f"{sys.prefix}/bin", os.environ["PATH"]]),
        "INTERNVL_SKIP_INSTALL": "1",
        "OMP_NUM_THREADS": THREADS,
        "PYTHONPATH": QUICK_METEOR,
        **settings,
    }


def run_launcher(script: str, *flags: str, cwd: Path = REPOSITORY, **settings: str) -> subprocess.CompletedProcess:
    """Run a shell script of the repository as a user does."""
    return subprocess.run(
        ["bash", script, *flags], cwd=cwd, env=launcher_environment(**settings), capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip


def losses(folder: Path) -> list[float]:
    """The logged loss of each optimizer step."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]
