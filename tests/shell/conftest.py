"""Running the shell scripts the way a user does, with the environment of the running interpreter."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]

# The settings a developer may have exported must not reach the scripts under test.
SETTINGS = (
    "GPUS NNODES NODE_RANK MASTER_ADDR MASTER_PORT BATCH_SIZE PER_DEVICE_BATCH_SIZE MODEL META_PATH "
    "OUTPUT_DIR DEEPSPEED PRECISION DRY_RUN CONDA_PREFIX OMP_NUM_THREADS PYTHONPATH"
).split()

# Stands in for the finetune script where only the launcher is under test: it notes what it was given, prints
# on both streams, and does what the flag --do says.
STUB_FINETUNE = """
import json, os, pathlib, sys, time
argv = sys.argv[1:]
pathlib.Path("argv.json").write_text(json.dumps(argv))
# Each line in one write: torchrun starts scripts unbuffered, where print writes the text and its end apart, and
# what the other stream writes in between would cut the line in the log.
sys.stdout.write("stub on stdout\\n")
sys.stderr.write("stub on stderr\\n")
do = argv[argv.index("--do") + 1] if "--do" in argv else "exit 0"
if do == "sleep":
    time.sleep(60)
elif do == "die":
    os.kill(os.getpid(), 9)
sys.exit(int(do.split()[1]))
"""


def script_environment(**settings: str) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    environment |= {
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}",
        "INTERNVL_SKIP_INSTALL": "1",
    }
    return environment | settings


def run_script(script: Path | str, *arguments: str, cwd: Path = REPO, **settings: str):
    return subprocess.run(
        ["bash", str(script), *arguments],
        cwd=cwd,
        env=script_environment(**settings),
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def run() -> Callable:
    """`run(script, *arguments, cwd=…, GPUS="1", …)` gives the finished process."""
    return run_script


@pytest.fixture
def environment() -> Callable:
    return script_environment


@pytest.fixture
def repo() -> Path:
    return REPO


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the launchers in a path with awkward characters, on a machine that says it has two bf16 GPUs,
    with a stub for the finetune script, a model folder and the habitat data."""
    root = tmp_path / "my $(repo) 'copy'"
    shutil.copytree(REPO / "shell", root / "shell")
    shutil.copy(REPO / "evaluate.sh", root)
    train = root / "internvl/train"
    train.mkdir(parents=True)
    shutil.copytree(REPO / "internvl/launch", root / "internvl/launch", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__", "cli", "torchrun", "errors", "json_files", "patterns", "repository", "distributed"):
        shutil.copy(REPO / f"internvl/{name}.py", root / "internvl")
    (root / "internvl/device.py").write_text("print('cuda bf16 2')")
    (train / "internvl_chat_finetune.py").write_text(STUB_FINETUNE)
    (root / "pretrained/InternVL2-2B").mkdir(parents=True)
    (root / "pretrained/InternVL2-2B/config.json").write_text("{}")
    (root / "data/habitat").mkdir(parents=True)
    (root / "data/habitat/train.jsonl").touch()
    return root
