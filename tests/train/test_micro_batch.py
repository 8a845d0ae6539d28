"""How many rows go through the model at once: by memory, by tokens, and as an interrupted run had them."""

import json

import pytest

from internvl.errors import UserError
from internvl.train import internvl_chat_finetune, memory, micro_batch
from internvl.train.arguments import parse_arguments
from internvl.train.reward_arguments import parse_reward_arguments

LORA = ["--freeze_llm", "True", "--freeze_mlp", "True", "--freeze_backbone", "True", "--use_llm_lora", "4"]
GIVEN = ["--model_name_or_path", "m", "--meta_path", "m", "--output_dir", "o", *LORA]


@pytest.fixture
def finetune(tiny_base, rows_folder, tmp_path):
    """``finetune("name", flag, …)`` trains on 12 rows a step and returns the folder and the losses."""

    def run(name: str, *flags: str):
        given = ["--model_name_or_path", tiny_base, "--meta_path", rows_folder / "meta.json", "--use_cpu", True]
        given += [
            "--output_dir",
            tmp_path / name,
            *LORA,
            "--max_steps",
            3,
            "--learning_rate",
            "1e-3",
            "--lora_dropout",
            0,
        ]
        given += ["--per_device_train_batch_size", 12, "--gradient_accumulation_steps", 1, "--logging_steps", 1]
        given += ["--report_to", "none", "--dataloader_num_workers", 0, *flags]
        internvl_chat_finetune.main([str(part) for part in given])
        history = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        return tmp_path / name, [entry["loss"] for entry in history if "loss" in entry]

    return run


def chosen(folder) -> int:
    return json.loads((folder / "training_args.json").read_text())[micro_batch.RECORDED]


@pytest.mark.parametrize("way", [(), ("--share_image_prefix", "True"), ("--packing", "True")], ids=str)
def test_all_rows_go_at_once_where_they_fit_and_losses_are_the_same(way, finetune, monkeypatch):
    _, expected = finetune("given", *way)
    folder, losses = finetune("fits", "--auto_micro_batch", "True", *way)
    assert chosen(folder) == 12 and losses == expected
    monkeypatch.setattr(micro_batch, "ENOUGH_TOKENS", 250)
    folder, losses = finetune("enough", "--auto_micro_batch", "True", *way)
    assert 1 <= chosen(folder) < 12 and losses == pytest.approx(expected, rel=1e-5)


def test_what_does_not_fit_into_memory_is_divided(finetune, monkeypatch):
    plan, asked = micro_batch.plan_memory, []

    def little_memory(model, largest, **settings):
        asked.append(largest.tokens)
        monkeypatch.setattr(memory, "available_bytes", lambda device: 0 if len(asked) < 4 else 1 << 40)
        return plan(model, largest, **settings)

    monkeypatch.setattr(micro_batch, "plan_memory", little_memory)
    folder, _ = finetune("small", "--auto_micro_batch", "True")
    assert chosen(folder) == 3 and asked == sorted(asked, reverse=True)  # of 12, 6, 4 and 3 rows


def test_a_run_goes_on_with_the_size_that_it_had(finetune, monkeypatch, tmp_path):
    saving = ["--save_strategy", "steps", "--save_steps", "1", "--auto_micro_batch", "True"]
    monkeypatch.setattr(micro_batch, "ENOUGH_TOKENS", 250)
    folder, whole = finetune("whole", *saving)
    (tmp_path / "cut").mkdir()
    for name in ("checkpoint-1", "training_args.json"):
        (folder / name).rename(tmp_path / "cut" / name)
    size = chosen(tmp_path / "cut")
    monkeypatch.setattr(micro_batch, "ENOUGH_TOKENS", 10**6)
    cut, losses = finetune("cut", *saving)
    assert chosen(cut) == size and losses == whole


def test_it_is_refused_where_the_size_has_to_be_known_before():
    with pytest.raises(UserError, match="--auto_micro_batch: DeepSpeed is told .*DEEPSPEED=none"):
        parse_arguments(
            [*GIVEN, "--auto_micro_batch", "True", "--deepspeed", "shell/deepspeed/zero_stage1_config.json"]
        )
    with pytest.raises(UserError, match="--auto_micro_batch: looking at answers before the step takes memory"):
        parse_reward_arguments([*GIVEN, "--lora_dropout", "0", "--auto_micro_batch", "True"])
