"""Completion in bash: what a TAB offers behind a launcher, the evaluation and a command."""

import subprocess

import pytest

from tests.conftest import REPOSITORY

SCRIPT = """
source shell/completion.bash
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_internvl_complete
printf '%s\\n' "${COMPREPLY[@]}"
"""
LORA = "shell/internvl2.0/habitat_2b_finetune/lora.sh"


def offered(*words: str) -> list[str]:
    done = subprocess.run(["bash", "-c", SCRIPT, "bash", *words], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("bash", LORA, "--learn"), ["--learning-rate", "--learning_rate"]),
        (("bash", LORA, "--max_steps", "5", "--use_llm"), ["--use_llm_lora"]),
        (("bash", "evaluate.sh", "model", "answers-h"), ["answers-habitat_nav"]),
        (("bash", "evaluate.sh", "model", "caption-coco", "--num-b"), ["--num-beams"]),
        (("python", "tools/merge_lora.py", "--allow"), ["--allow-other-base"]),
        pytest.param(("bash", "evaluate.sh", "model", "answers-custom", "--mat"), ["--match"], marks=pytest.mark.slow),
        pytest.param(
            ("bash", "shell/internvl2.0/habitat_2b_finetune/dpo.sh", "--obj"), ["--objective"], marks=pytest.mark.slow
        ),
        (("bash", LORA, "log/"), []),  # files are bash's own business
        (("bash", "tests/run.sh", "--a"), []),
        (("bash", LORA), []),
    ],
)
def test_a_tab_offers_what_fits(words, found):
    assert offered(*words) == found
