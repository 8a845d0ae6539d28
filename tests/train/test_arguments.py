"""Flags: names that users know, and what happens to ones that do not exist or do not fit."""

import pytest

from internvl.errors import UserError
from internvl.train.arguments import parse_arguments

REQUIRED = ["--model_name_or_path", "base", "--meta_path", "meta.json", "--output_dir", "out", "--use_cpu", "True"]
FROZEN = ["--freeze_backbone", "True", "--freeze_mlp", "True"]
HELD_OUT = ["--eval_meta_path", "val.json"]


def parse(*flags):
    return parse_arguments([*REQUIRED, *flags])


def test_flags_that_transformers_renamed_keep_working():
    _, data, training = parse(
        "--evaluation_strategy", "no", "--warmup_ratio", "0.03", "--group_by_length", "True",
        "--overwrite_output_dir", "True",
    )  # fmt: skip
    assert training.eval_strategy == "no" and training.warmup_steps == 0.03
    assert data.group_by_length and training.overwrite_output_dir


def test_grad_checkpoint_keeps_its_name():
    assert [parse("--grad_checkpoint", value)[0].grad_checkpoint for value in ("False", "auto")] == ["False", "auto"]
    with pytest.raises(UserError, match="--grad_checkpoint: is 'some'"):
        parse("--grad_checkpoint", "some")


def test_a_renamed_flag_may_carry_its_value_behind_an_equals_sign():
    assert parse("--warmup_ratio=0.1")[2].warmup_steps == 0.1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning_rat", "1"], r"no flag --learning_rat\. Did you mean --learning_rate\?"),
        (["--use_llm_lora", "many"], "use_llm_lora"),
        (["--use_llm_lora", "8"], "--use_llm_lora: LoRA trains beside frozen weights"),
        (["--use_llm_lora", "-8"], "--use_llm_lora: is -8"),
        (["--lora_dropout", "1.5"], "--lora_dropout: is 1.5"),
        (["--max_dynamic_patch", "0"], "--max_dynamic_patch: is 0"),
        (["--force_image_size", "big"], "--force_image_size: is 'big'"),
        (["--on_bad_sample", "replace"], "invalid choice: 'replace'"),
        (["--eval_strategy", "sometimes"], "sometimes"),
        (["--eval_caption_steps", "5"], "--eval_caption_steps: needs rows to evaluate on"),
        ([*HELD_OUT, "--early_stopping_patience", "2"], "Add --load_best_model_at_end True"),
        ([*HELD_OUT, "--metric_for_best_model", "CIDEr"], "CIDEr is not measured"),
        ([*HELD_OUT, "--metric_for_best_model", "bleu"], "Give loss, CIDEr, accuracy, macro_F1"),
        ([*HELD_OUT, "--metric_for_best_model", "accuracy"], "accuracy is not measured. Add --eval_answer_steps N"),
        ([*HELD_OUT, "--eval_answer_steps", "2"], "--eval_answer_steps: has no effect alone. Add --eval_match HOW"),
        ([*HELD_OUT, "--eval_match", "exact"], "--eval_match: has no effect alone. Add --eval_answer_steps N"),
        ([*HELD_OUT, "--eval_answer_steps", "2", "--eval_match", "rougher"], "--eval_match: is 'rougher'. Give"),
        (["--eval_answer_steps", "5"], "--eval_answer_steps: needs rows to evaluate on"),
        ([*HELD_OUT, "--eval_caption_steps", "-1"], "--eval_caption_steps: is -1"),
        ([*HELD_OUT, "--eval_caption_steps", "1", "--eval_caption_samples", "1"], "at least 2"),
        (["--vision_cache", "c", "--freeze_backbone", "True"], "--vision_cache: features of images change"),
        (["--vision_cache", "c", *FROZEN, "--use_backbone_lora", "4"], "--vision_cache: features of images change"),
        (["--vision_cache_gb", "0"], r"--vision_cache_gb: is 0\.0"),
        (["--load_in_4bit", "True"], "--load_in_4bit: weights in 4 bits cannot train"),
    ],
)
def test_flags_that_cannot_work_are_refused_by_name(flags, message):
    with pytest.raises(UserError, match=message):
        parse(*flags)
