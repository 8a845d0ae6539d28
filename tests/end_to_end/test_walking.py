"""docs/embodied.md, the example that walks: train on the shipped episodes, score actions, drive."""

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.end_to_end.launching import launcher_environment, losses, run_launcher

NAV = "shell/internvl2.0/habitat_2b_finetune/nav_lora.sh"


@pytest.mark.slow
def test_the_example_trains_scores_and_walks(tmp_path):
    base = str(REPOSITORY / "pretrained" / "InternVL2-Tiny")
    run, result = tmp_path / "run", tmp_path / "result"
    settings = {"MODEL": base, "OUTPUT_DIR": str(run), "BATCH_SIZE": "16", "PER_DEVICE_BATCH_SIZE": "16"}
    flags = ["--learning_rate", "1e-3", "--unfreeze_lm_head", "True", "--max_steps", "8", "--logging_steps", "1"]
    process = run_launcher(NAV, *flags, **settings)
    assert process.returncode == 0, process.stderr
    assert losses(run)[-1] < losses(run)[0]
    flags = ["--match", "json:action", "--cluster", "episode_id", "--limit", "20", "--out-dir", str(result)]
    process = run_launcher("evaluate.sh", str(run), "answers-habitat_nav", *flags)
    assert process.returncode == 0, process.stderr
    scores = json.loads((result / "scores.json").read_text())
    assert 0 <= scores["accuracy"] <= 1 and scores["settings"]["checkpoint"] == str(run)
    command = [sys.executable, "tools/drive_habitat.py", str(run), "random", "--rooms", "2"]
    process = subprocess.run(command, cwd=REPOSITORY, env=launcher_environment(), capture_output=True, text=True)
    assert process.returncode == 0 and "2 unseen rooms" in process.stdout, process.stderr
