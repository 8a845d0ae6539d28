"""Which flags make another training of a command, and which do not."""

from dataclasses import fields

import pytest
from transformers import TrainingArguments

from internvl.errors import UserError
from internvl.json_files import write_json
from internvl.train.arguments import DataArguments, FinetuneArguments, ModelArguments
from internvl.train.run_folder import FINISHED, RECORD, WITHOUT_EFFECT, RunFolder, find_differences

# Inherited flags that decide what comes out; with WITHOUT_EFFECT, all that transformers has.
WITH_EFFECT = frozenset(
    """
    accelerator_config activation_checkpointing activation_checkpointing_kwargs adam_beta1 adam_beta2 adam_epsilon
    auto_find_batch_size average_tokens_across_devices batch_eval_metrics bf16 bf16_full_eval data_seed debug deepspeed
    enable_jit_checkpoint fp16 fp16_full_eval fsdp fsdp_config full_determinism gradient_accumulation_steps
    gradient_checkpointing gradient_checkpointing_kwargs ignore_data_skip include_for_metrics
    include_num_input_tokens_seen label_names label_smoothing_factor learning_rate length_column_name
    liger_kernel_config load_best_model_at_end lr_scheduler_kwargs lr_scheduler_type max_grad_norm max_steps
    neftune_noise_alpha num_train_epochs optim optim_args optim_target_modules parallelism_config
    per_device_train_batch_size prediction_loss_only remove_unused_columns restore_callback_states_from_checkpoint seed
    tf32 torch_compile torch_compile_backend torch_compile_mode train_sampling_strategy use_cache use_cpu
    use_liger_kernel warmup_steps weight_decay
    """.split()
)


def test_every_flag_is_said_to_change_the_result_or_not():
    inherited = {field.name for field in fields(TrainingArguments)}
    assert not WITH_EFFECT & WITHOUT_EFFECT
    assert inherited - WITHOUT_EFFECT == WITH_EFFECT, "classify what transformers has added or removed"
    own = {field.name for group in (ModelArguments, DataArguments, FinetuneArguments) for field in fields(group)}
    assert own >= WITHOUT_EFFECT


@pytest.mark.parametrize(
    ("flag", "value"),
    [("save_full_model", True), ("eval_meta_path", "val.json"), ("learning_rate", 2e-3), ("on_nan", "skip")],
)
def test_a_flag_that_changes_what_is_written_is_another_training(tmp_path, flag, value):
    """A finished run with --save_full_model True added was told that it is finished, and wrote no model."""
    earlier = {"FinetuneArguments": {flag: None}}
    write_json(tmp_path / RECORD, earlier)
    (tmp_path / FINISHED).touch()
    assert RunFolder(tmp_path, earlier).find_resume_point(False, None).finished
    with pytest.raises(UserError, match=f"--{flag}: None then, .* now"):
        RunFolder(tmp_path, {"FinetuneArguments": {flag: value}}).find_resume_point(False, None)


@pytest.mark.parametrize(
    "flag", ["save_steps", "logging_steps", "dataloader_num_workers", "eval_caption_steps", "eval_match"]
)
def test_a_flag_of_writing_and_working_continues_the_training(flag):
    assert find_differences({"FinetuneArguments": {flag: 1}}, {"FinetuneArguments": {flag: 2}}) == []
