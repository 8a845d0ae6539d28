"""Running the launchers for real on the tiny base, as a user does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

LORA = "shell/internvl2.0/habitat_2b_finetune/lora.sh"
# One thread a run: tiny models are no faster with two, and tests should not depend on how many cores there are.
THREADS = "1"
# The environment whose Python the scripts run with.
ENVIRONMENT = [Path(sys.prefix)]


@pytest.fixture(scope="session", autouse=True)
def _warm(warm_environment):
    ENVIRONMENT[0] = warm_environment


def run_launcher(script: str, *flags: str, cwd: Path = REPOSITORY, **settings: str) -> subprocess.CompletedProcess:
    """Run a shell script of the repository as a user does."""
    hidden = {
        "GPUS",
        "BATCH_SIZE",
        "PER_DEVICE_BATCH_SIZE",
        "MODEL",
        "META_PATH",
        "OUTPUT_DIR",
        "DRY_RUN",
        "PYTHONPATH",
    }
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {
        "VIRTUAL_ENV": str(ENVIRONMENT[0]),
        "PATH": os.pathsep.join([f"{ENVIRONMENT[0]}/bin", f"{sys.prefix}/bin", os.environ["PATH"]]),
        "INTERNVL_SKIP_INSTALL": "1",
        "OMP_NUM_THREADS": THREADS,
        **settings,
    }
    return subprocess.run(
        ["bash", script, *flags], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.fixture
def finetune(tiny_base, rows_folder, tmp_path):
    """``finetune("name", "--flag", …, GPUS="2")`` trains on the tiny rows and returns (output folder, process)."""

    def run(name: str, *flags: str, script: str = LORA, **settings: str):
        settings = {
            "MODEL": str(tiny_base),
            "META_PATH": str(rows_folder / "meta.json"),
            "OUTPUT_DIR": str(tmp_path / name),
            "BATCH_SIZE": "8",
            "PER_DEVICE_BATCH_SIZE": "4",
            **settings,
        }
        process = run_launcher(script, "--dataloader_num_workers", "0", *flags, **settings)
        return tmp_path / name, process

    return run


def losses(folder: Path) -> list[float]:
    """The logged loss of each optimizer step."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]
