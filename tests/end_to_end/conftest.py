"""Fixtures of whole runs."""

import pytest

from tests.end_to_end.launching import ENVIRONMENT, LORA, run_launcher
from tests.faults.runs import runs, train  # noqa: F401 - fixtures


@pytest.fixture(scope="session", autouse=True)
def _warm(warm_environment):
    ENVIRONMENT[0] = warm_environment


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
