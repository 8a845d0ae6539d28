"""A training on the score as a command: it ends, continues to the same bits, and is the same on two processes."""

import gzip
import json

import pytest
from safetensors.torch import load_file

from tests.faults.test_kills import digest

# Of the harness's flags, what a training on the score cannot have, and what suits it.
FLAGS = (
    "--lora_dropout", "0.0", "--share_image_prefix", "False", "--packing", "False", "--num_samples", "3",
    "--sample_max_new_tokens", "8", "--max_steps", "3", "--save_steps", "1", "--learning_rate", "1e-3",
    "--kl", "0.05", "--ce_mix", "0.1",
)  # fmt: skip


def entries(folder) -> list[dict]:
    state = json.loads((folder / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "reward" in entry]


@pytest.fixture
def reward(train, tmp_path):
    def run(name, processes=1, fault=None, *flags):
        status = train(tmp_path / name, processes, fault, (*FLAGS, *flags), command="reward")
        return status, tmp_path / name

    return run


def test_a_killed_training_continues_to_the_same_bits(reward, tmp_path):
    status, whole = reward("whole")
    assert status == 0, (tmp_path / "log.txt").read_text()[-3000:]
    assert reward("killed", 1, {"batch": 4})[0] == -9
    status, killed = reward("killed")
    assert status == 0 and "Continuing from" in (tmp_path / "log.txt").read_text()
    assert digest(killed) == digest(whole)
    for entry in entries(whole):
        assert {"reward", "reward_spread", "answer_tokens", "ended", "kl", "grad_norm"} <= entry.keys()
        assert 0 <= entry["ended"] <= 1 and 1 <= entry["answer_tokens"] <= 8
    assert ", reward " in (tmp_path / "log.txt").read_text()  # the progress line
    assert entries(whole)[0]["kl"] == pytest.approx(0, abs=1e-4)  # the policy is the start's then
    assert json.loads((whole / "training_args.json").read_text())["RewardArguments"]["num_samples"] == 3
    recorded = json.loads((whole / "data_report.json").read_text())["reward"]["CIDEr-D"]
    assert recorded["weight"] == 1 and recorded["signature"].startswith("PTB+STANDARD_wInit+Cider-D[n4,s6.0]+df[")
    stored = json.loads(gzip.decompress((whole / "document_frequencies.json.gz").read_bytes()))
    assert f"df[{stored['images']} images" in recorded["signature"]
    assert 1 <= max(stored["document_frequency"].values()) <= stored["images"]
    assert (whole / "document_frequencies.json.gz").read_bytes() == (
        killed / "document_frequencies.json.gz"
    ).read_bytes()


@pytest.mark.slow
def test_two_processes_draw_the_same_answers(reward, tmp_path):
    status, one = reward("one")
    assert status == 0, (tmp_path / "log.txt").read_text()[-3000:]
    status, two = reward("two", 2)
    assert status == 0, (tmp_path / "log.txt").read_text()[-3000:]
    for alone, together in zip(entries(one), entries(two), strict=True):
        for name in ("loss", "reward", "kl", "answer_tokens", "grad_norm"):
            assert together[name] == pytest.approx(alone[name], rel=1e-4, abs=2e-4), name


@pytest.mark.slow
def test_an_adapter_trains_on_and_its_base_stays_the_base(reward, tmp_path):
    _, first = reward("first")
    status, second = reward("second", 1, None, "--model_name_or_path", str(first), "--max_steps", "1")
    assert status == 0, (tmp_path / "log.txt").read_text()[-3000:]
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder in (first, second)]
    assert configs[0]["base_model_name_or_path"] == configs[1]["base_model_name_or_path"]
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    assert before.keys() == after.keys()
    moved = max((before[name] - after[name]).abs().max().item() for name in before)
    assert 0 < moved < 5e-3  # one step of 1e-3 from where the first ended
    for flags, words in (
        (("--use_llm_lora", "4"), "is an adapter with r 8, and the flags ask for 4"),
        (("--use_llm_lora", "0", "--freeze_mlp", "False"), "is an adapter of rank 8, and no LoRA is asked for"),
    ):
        status, _ = reward("refused", 1, None, "--model_name_or_path", str(first), *flags)
        assert status == 2 and words in (tmp_path / "log.txt").read_text()
