"""What the parser of the finetune flags cannot check: values that must fit together."""

from typing import TYPE_CHECKING

from internvl.data.video import is_frame_sampling
from internvl.errors import UserError
from internvl.evaluation.matching import Match
from internvl.limits import MAX_ALPHA, MAX_TILES

if TYPE_CHECKING:
    from internvl.train.arguments import DataArguments, FinetuneArguments, ModelArguments

LORA_FLAGS = ("lora_alpha", "use_rslora", "use_dora", "lora_target_modules")
RECOMPUTE = ("auto", "true", "false")


def check_arguments(model: "ModelArguments", data: "DataArguments", training: "FinetuneArguments") -> None:
    """Check what the parser cannot: values that must fit together.

    Raises:
        UserError: names the flag, its value and what to do.
    """
    check_data_arguments(data)
    for name in ("use_llm_lora", "use_backbone_lora"):
        if getattr(model, name) < 0:
            raise UserError(f"--{name}: is {getattr(model, name)}. Give a rank such as 128, or 0 for no LoRA.")
    if not 0 <= model.lora_dropout < 1:
        raise UserError(f"--lora_dropout: is {model.lora_dropout}. Give a probability from 0 to below 1.")
    _check_lora(model, training)
    if model.use_llm_lora and not model.freeze_llm:
        raise UserError(
            "--use_llm_lora: LoRA trains beside frozen weights. Add --freeze_llm True, or remove the flag."
        )
    if model.use_backbone_lora and not model.freeze_backbone:
        raise UserError(
            "--use_backbone_lora: LoRA trains beside frozen weights. Add --freeze_backbone True, or remove the flag."
        )
    if model.grad_checkpoint.lower() not in RECOMPUTE:
        raise UserError(f"--grad_checkpoint: is {model.grad_checkpoint!r}. Give auto, True or False.")
    if data.vision_cache and (model.use_backbone_lora or not (model.freeze_backbone and model.freeze_mlp)):
        raise UserError(
            "--vision_cache: features of images change while the vision encoder or the projector trains. Add "
            "--freeze_backbone True --freeze_mlp True, or remove the flag."
        )
    if model.load_in_4bit and not (model.use_llm_lora and model.freeze_llm):
        raise UserError("--load_in_4bit: weights in 4 bits cannot train. Add --freeze_llm True --use_llm_lora 128.")
    if training.on_nan == "skip" and training.deepspeed:
        raise UserError("--on_nan: skip does not work with DeepSpeed, which steps by itself. Remove the flag.")
    if training.auto_micro_batch and training.deepspeed:
        raise UserError(
            "--auto_micro_batch: DeepSpeed is told the size of a forward pass before the model is there. Set "
            "DEEPSPEED=none, or name PER_DEVICE_BATCH_SIZE."
        )
    _check_evaluation(training)
    if model.unfreeze_lm_head and model.use_llm_lora == 0 and not model.freeze_llm:
        raise UserError("--unfreeze_lm_head: the whole language model trains already. Remove the flag.")


def _check_lora(model: "ModelArguments", training: "FinetuneArguments") -> None:
    """Check the flags that say what LoRA is like; errors as above."""
    given = [name for name in LORA_FLAGS if getattr(model, name)]
    if model.lora_alpha is not None and not 1 <= model.lora_alpha <= MAX_ALPHA:
        raise UserError(
            f"--lora_alpha: is {model.lora_alpha}. Give a number from 1 to {MAX_ALPHA:,.0f}; twice the rank is usual."
        )
    if not given:
        return
    if not (model.use_llm_lora or model.use_backbone_lora):
        raise UserError(f"--{given[0]}: there is no LoRA. Add --use_llm_lora 128, or remove the flag.")
    if model.lora_target_modules and not model.use_llm_lora:
        raise UserError(
            "--lora_target_modules: names layers of the language model, which has no LoRA. Add --use_llm_lora 128, or "
            "remove the flag."
        )
    if training.save_full_model:
        raise UserError(
            f"--{given[0]}: LoRA inside a whole checkpoint has alpha of twice the rank on all layers, and no other "
            "settings. Remove --save_full_model, and merge the adapter afterwards (python tools/merge_lora.py)."
        )


def _check_evaluation(training: "FinetuneArguments") -> None:
    """Check the flags of the evaluation during training; errors as above."""
    wanted = {
        "eval_strategy": training.eval_strategy != "no",
        "eval_caption_steps": training.eval_caption_steps,
        "eval_answer_steps": training.eval_answer_steps,
        "early_stopping_patience": training.early_stopping_patience,
        "load_best_model_at_end": training.load_best_model_at_end,
    }
    for name, value in wanted.items():
        if value and not training.eval_meta_path:
            raise UserError(f"--{name}: needs rows to evaluate on. Pass --eval_meta_path META.json.")
    for name in ("eval_caption_steps", "eval_answer_steps", "early_stopping_patience"):
        if getattr(training, name) < 0:
            raise UserError(f"--{name}: is {getattr(training, name)}. Give a whole number, 0 for never.")
    if training.eval_caption_steps and training.eval_caption_samples < 2:
        raise UserError(
            f"--eval_caption_samples: is {training.eval_caption_samples}. Give at least 2: CIDEr of one image is 0."
        )
    if training.eval_match:
        Match.parse(training.eval_match, "--eval_match")
    if bool(training.eval_answer_steps) != bool(training.eval_match):
        given, missing = "eval_answer_steps", "eval_match HOW, such as json:action"
        if training.eval_match:
            given, missing = "eval_match", "eval_answer_steps N"
        raise UserError(f"--{given}: has no effect alone. Add --{missing}, or remove the flag.")
    if training.early_stopping_patience and not training.load_best_model_at_end:
        raise UserError("--early_stopping_patience: needs to know what is best. Add --load_best_model_at_end True.")
    best = (training.metric_for_best_model or "loss").removeprefix("eval_")
    measured_by = {"CIDEr": "eval_caption_steps", "accuracy": "eval_answer_steps", "macro_F1": "eval_answer_steps"}
    if best != "loss" and best not in measured_by:
        raise UserError(f"--metric_for_best_model: is {best!r}. Give loss, {', '.join(measured_by)}.")
    if best != "loss" and not getattr(training, measured_by[best]):
        raise UserError(f"--metric_for_best_model: {best} is not measured. Add --{measured_by[best]} N.")


def check_data_arguments(data: "DataArguments") -> None:
    """Check the data flags; errors as above."""
    if data.force_image_size != "auto" and not data.force_image_size.isdigit():
        raise UserError(f"--force_image_size: is {data.force_image_size!r}. Give a number of pixels, or auto.")
    if not 1 <= data.min_dynamic_patch <= data.max_dynamic_patch:
        raise UserError(
            f"--max_dynamic_patch: is {data.max_dynamic_patch} with --min_dynamic_patch {data.min_dynamic_patch}. "
            "Both must be at least 1, the first not below the second."
        )
    if data.max_dynamic_patch > MAX_TILES:
        raise UserError(
            f"--max_dynamic_patch: is {data.max_dynamic_patch}. Give a whole number from 1 to {MAX_TILES}."
        )
    if not 1 <= data.min_num_frame <= data.max_num_frame:
        raise UserError(
            f"--max_num_frame: is {data.max_num_frame} with --min_num_frame {data.min_num_frame}. Both must be at "
            "least 1, the first not below the second."
        )
    if not is_frame_sampling(data.sampling_method):
        raise UserError(
            f"--sampling_method: is {data.sampling_method!r}. Give rand, middle, or a rate such as fps1 or fps0.5."
        )
    if data.vision_cache_gb <= 0:
        raise UserError(f"--vision_cache_gb: is {data.vision_cache_gb}. Give a number of gigabytes above 0.")
    if not 0 <= data.max_bad_fraction <= 1:
        raise UserError(f"--max_bad_fraction: is {data.max_bad_fraction}. Give a share from 0 to 1, such as 0.01.")
    if data.max_seq_length < 2:
        raise UserError(f"--max_seq_length: is {data.max_seq_length}. Give a number of tokens such as 4096.")
