"""What messages advise: every flag and command that one names is there, and has been followed by a test."""

import ast
import json
import subprocess

from internvl.train.arguments import DataArguments, FinetuneArguments, ModelArguments
from internvl.train.reward_arguments import RewardArguments
from tests.advice import all_advice
from tests.conftest import REPOSITORY
from tests.end_to_end.launching import losses
from tests.end_to_end.test_evaluate import evaluate

# Of other programs, or of every one.
FOREIGN = {"--shm-size": "docker run", "--trust-request-mm-kwargs": "vllm serve", "--help": "every command"}


def own_flags() -> set[str]:
    """Return the flags of all commands of this project, with dashes."""
    groups = (ModelArguments, DataArguments, FinetuneArguments, RewardArguments)
    flags = {f"--{field}" for group in groups for field in group.__dataclass_fields__}
    for folder in ("internvl", "eval", "tools"):
        for file in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                is_flag = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
                flags |= {part.value for part in node.args if isinstance(part, ast.Constant)} if is_flag else set()
    return {flag.replace("_", "-") for flag in flags}


def flags_of_tests() -> set[str]:
    """Return the flags that tests pass to commands, with dashes: words of their own in a test's source."""
    found = set()
    for file in (REPOSITORY / "tests").rglob("*.py"):
        if ".versions" in file.parts or file.name == "advice.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= {word.partition("=")[0] for word in node.value.split() if word.startswith("--")}
    return {flag.replace("_", "-") for flag in found}


def test_every_flag_and_command_in_a_message_is_there():
    known, advice = own_flags(), all_advice()
    assert len(advice) > 100
    for one in advice:
        for flag in one.flags:
            assert flag in FOREIGN or flag.replace("_", "-") in known, f"{one.where}: {flag}"
        for command in one.commands:
            assert (REPOSITORY / command).is_file(), f"{one.where}: {command}"


def test_every_flag_that_a_message_advises_is_passed_by_a_test():
    passed = flags_of_tests()
    advised = {flag: one.where for one in all_advice() for flag in one.flags if flag not in FOREIGN}
    assert [f"{where}: {flag}" for flag, where in advised.items() if flag.replace("_", "-") not in passed] == []


def test_advice_of_an_evaluation_leads_on(trained_adapter, tmp_path):
    flags = ["--limit", "3", "--num-frames", "4", "--prompt", "Describe it.", "--temperature", "0.5", "--max-num", "2"]
    predictions, scores = evaluate(trained_adapter, tmp_path / "one", "--dynamic", *flags)
    assert len(predictions) == 3
    assert scores["settings"]["prompt"] == "Describe it." and scores["settings"]["max_num"] == 2


def test_another_base_is_taken_with_the_flag_that_the_refusal_names(trained_adapter, warm_python, tmp_path):
    config = json.loads((trained_adapter / "adapter_config.json").read_text())
    config["auto_mapping"]["base_model_sha256"] = "0" * 64
    (trained_adapter / "adapter_config.json").write_text(json.dumps(config))
    flags = [
        "--checkpoint",
        trained_adapter,
        "--datasets",
        "habitat",
        "--limit",
        "1",
        "--out-dir",
        tmp_path / "result",
    ]
    scored = subprocess.run(
        [warm_python, "eval/caption/evaluate_caption.py", *flags], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert scored.returncode == 0 and "was trained on a base with other weights" in scored.stderr
    merge = [warm_python, "tools/merge_lora.py", trained_adapter, tmp_path / "merged"]
    refused = subprocess.run(merge, cwd=REPOSITORY, capture_output=True, text=True)
    assert refused.returncode == 2 and "--allow-other-base" in refused.stderr
    assert not (tmp_path / "merged").exists()
    subprocess.run([*merge, "--allow-other-base"], cwd=REPOSITORY, check=True)


def test_advice_of_a_training_leads_on(finetune):
    flags = ["--max_steps", "2", "--sampling_method", "middle", "--unfreeze_lm_head", "True", "--save_steps", "1"]
    folder, process = finetune("run", *flags, "--save_total_limit", "2")
    assert process.returncode == 0, process.stderr
    again, process = finetune("again", *flags, "--resume_from_checkpoint", str(folder / "checkpoint-1"))
    assert process.returncode == 0, process.stderr
    assert losses(again)[1:] == losses(folder)[1:]
