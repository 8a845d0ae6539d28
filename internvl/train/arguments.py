"""The flags of a finetune, in three groups."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import TrainingArguments

from internvl.distributed import leave_out_compiled_reduction
from internvl.model.vision_cache import VISION_CACHE_GB
from internvl.train.argument_checks import check_arguments, check_data_arguments
from internvl.train.argument_parser import FlagParser

PUBLISHED_IMAGE_SIZE = 448


@dataclass
class ModelArguments:
    """Which model, what of it trains, and how it is adapted."""

    model_name_or_path: str = field(
        metadata={"help": "Folder to start from: a base, a merged model, an adapter to train on, or embedded LoRA."}
    )
    freeze_llm: bool = field(default=False, metadata={"help": "Freeze the language model's own weights."})
    freeze_backbone: bool = field(default=False, metadata={"help": "Freeze the vision encoder's own weights."})
    freeze_mlp: bool = field(default=False, metadata={"help": "Freeze the projector."})
    unfreeze_vit_layers: int = field(
        default=0, metadata={"help": "-n trains the last n layers of a frozen vision encoder."}
    )
    unfreeze_lm_head: bool = field(default=False, metadata={"help": "Train the output layer of a frozen LLM."})
    use_llm_lora: int = field(default=0, metadata={"help": "Rank of LoRA on the language model, 0 for none."})
    use_backbone_lora: int = field(default=0, metadata={"help": "Rank of LoRA on the vision encoder, 0 for none."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout in front of LoRA."})
    lora_alpha: int | None = field(default=None, metadata={"help": "LoRA is scaled by alpha / rank; default: 2 rank."})
    use_rslora: bool = field(default=False, metadata={"help": "Scale LoRA by alpha over the root of the rank."})
    use_dora: bool = field(
        default=False, metadata={"help": "DoRA: train the lengths of the rows apart from their directions, slower."}
    )
    lora_target_modules: str | None = field(
        default=None,
        metadata={
            "help": "Linear layers of the language model's blocks that get LoRA, by the ends of their names, with "
            "commas between them (q_proj,v_proj or attention.wqkv), or all-linear; by default all of them."
        },
    )
    grad_checkpoint: str = field(
        default="auto",
        metadata={
            "help": "Recompute activations in the backward pass to save memory: auto for as many layers as the memory "
            "plan says must be, True for all, False for none."
        },
    )
    load_in_4bit: bool = field(
        default=False,
        metadata={"help": "QLoRA: hold the language model's frozen weights in 4 bits (bitsandbytes)."},
    )
    drop_path_rate: float = field(default=0.0, metadata={"help": "Stochastic depth of the vision encoder."})
    vision_select_layer: int | None = field(
        default=None, metadata={"help": "Vision layer that feeds the projector; must be the checkpoint's."}
    )
    ps_version: str | None = field(
        default=None, metadata={"help": "Pixel unshuffle version, v1 or v2; must be the checkpoint's."}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "eager, sdpa or flash_attention_2; by default sdpa."},
    )


@dataclass
class DataArguments:
    """Which rows, and how they become samples."""

    meta_path: str = field(metadata={"help": "JSON file that names the data sets."})
    conv_style: str | None = field(
        default=None, metadata={"help": "Conversation template; must be the checkpoint's, which is the default."}
    )
    max_seq_length: int = field(default=4096, metadata={"help": "Longest row in tokens."})
    force_image_size: str = field(
        default="auto",
        metadata={"help": "Tile side in px; auto is 448, or the checkpoint's own size when it is smaller."},
    )
    down_sample_ratio: float | None = field(
        default=None, metadata={"help": "Pixel unshuffle factor; must be the checkpoint's."}
    )
    dynamic_image_size: bool = field(default=True, metadata={"help": "Cut images into tiles."})
    use_thumbnail: bool = field(default=True, metadata={"help": "Add a thumbnail to images of several tiles."})
    min_dynamic_patch: int = field(default=1, metadata={"help": "Fewest tiles of an image."})
    max_dynamic_patch: int = field(default=6, metadata={"help": "Most tiles of an image, without the thumbnail."})
    group_by_length: bool = field(
        default=True, metadata={"help": "Put rows of like length together inside an optimizer step."}
    )
    share_image_prefix: bool = field(
        default=False,
        metadata={
            "help": "Train rows that start with the same image in one sequence: what several begin with once, then "
            "what each has alone, blind to the others. Same loss, fewer tokens."
        },
    )
    packing: bool = field(
        default=False,
        metadata={
            "help": "Put an optimizer step's rows one behind the other without padding, as many at once as "
            "per_device_train_batch_size of the longest would fill. Same loss."
        },
    )
    draft_decoding: bool = field(
        default=False,
        metadata={
            "help": "Decode JPEGs at a half, a quarter or an eighth of their size where their tiles need no more: "
            "faster for large photos, with slightly other pixels."
        },
    )
    vision_cache: str | None = field(
        default=None,
        metadata={"help": "Folder that keeps the features of images for later epochs and evaluations."},
    )
    vision_cache_gb: float = field(default=VISION_CACHE_GB, metadata={"help": "Most that is kept there, in 10^9 B."})
    min_num_frame: int = field(default=8, metadata={"help": "Fewest frames of a video."})
    max_num_frame: int = field(default=32, metadata={"help": "Most frames of a video; their number is drawn."})
    sampling_method: str = field(
        default="rand",
        metadata={"help": "Which frames: rand or middle of equal parts of the video, or a rate such as fps1."},
    )
    on_long_sample: str = field(
        default="truncate",
        metadata={
            "help": "What to do with a row longer than max_seq_length: cut its text (a row whose images or all of "
            "whose answers would be cut is an error), give its images fewer tiles first, leave it out, or end with "
            "an error.",
            "choices": ["truncate", "fewer_tiles", "skip", "error"],
        },
    )
    on_bad_sample: str = field(
        default="skip",
        metadata={
            "help": "What to do with a row that turns unreadable during training (all are checked before): "
            "skip it, counted and listed in data_report.json, or end with an error.",
            "choices": ["skip", "error"],
        },
    )
    max_bad_fraction: float = field(
        default=0.01, metadata={"help": "Stop when more than this share of an epoch's rows had to be skipped."}
    )
    allow_outside_root: bool = field(
        default=False, metadata={"help": "Allow paths in rows that lead out of their data set's root."}
    )


@dataclass
class FinetuneArguments(TrainingArguments):
    """How it trains, is evaluated on the way, and ends; beside transformers' own flags."""

    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start anew where output_dir holds an earlier run."}
    )
    save_full_model: bool = field(
        default=False, metadata={"help": "Write a whole model instead of an adapter (always so without LoRA)."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Leave this False: batches are ours."})
    report_to: str = field(default="tensorboard", metadata={"help": "tensorboard, wandb, … or none."})
    logging_steps: float = field(default=1, metadata={"help": "Log every N steps."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Every batch uses every part of the model, so this costs for nothing."}
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Leave this False: --on_nan looks at losses, and this waits for each of them."},
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "Clip gradients to this norm."})
    ddp_timeout: int = field(
        default=600,
        metadata={"help": "Seconds after which a process that waits for another in vain ends the training."},
    )
    on_nan: str = field(
        default="stop",
        metadata={
            "help": "What to do when a step's loss is not a number: stop and name its rows, or skip the step.",
            "choices": ["stop", "skip"],
        },
    )
    eval_meta_path: str | None = field(
        default=None,
        metadata={
            "help": "Meta file of rows held out: their loss is logged whenever a checkpoint is saved, or as "
            "eval_strategy and eval_steps say, and at the end."
        },
    )
    eval_caption_steps: int = field(
        default=0,
        metadata={"help": "Every N steps, also answer a sample of the held-out rows and log CIDEr; 0: never."},
    )
    eval_answer_steps: int = field(
        default=0,
        metadata={
            "help": "Every N steps, also answer a sample of the held-out rows and log accuracy and macro-F1 of what "
            "eval_match compares; 0: never."
        },
    )
    eval_match: str | None = field(
        default=None,
        metadata={"help": "What of an answer is compared, as --match of evaluate.sh: exact, choice, json:FIELD, …"},
    )
    eval_caption_samples: int = field(
        default=64, metadata={"help": "Number of questions in these samples, the same ones each time."}
    )
    early_stopping_patience: int = field(
        default=0,
        metadata={
            "help": "Stop when metric_for_best_model was no better in N evaluations (with "
            "load_best_model_at_end); 0: never."
        },
    )

    auto_micro_batch: bool = field(
        default=False,
        metadata={
            "help": "Take as many of a step's rows through the model at once as fit into memory, whatever "
            "per_device_train_batch_size and gradient_accumulation_steps divide them into; losses are the same."
        },
    )

    def __post_init__(self):
        if self.eval_meta_path and self.eval_strategy == "no" and self.save_strategy != "no":  # type: ignore[has-type]
            # The loss of a checkpoint is what one wants to know of it.
            self.eval_strategy = "steps" if self.save_strategy == "best" else self.save_strategy
            self.eval_steps = self.eval_steps or self.save_steps  # type: ignore[has-type]
        # The progress line is ours (progress.py); transformers' own bar is switched off.
        self.disable_tqdm = True
        # transformers wants a bool now, and its parser still gives it a text.
        if str(self.fsdp).lower() in ("true", "false"):  # type: ignore[has-type]
            self.fsdp = str(self.fsdp).lower() == "true"  # type: ignore[has-type]
        if self.deepspeed:
            leave_out_compiled_reduction()  # before the ranks meet, which they do while the arguments are made
        super().__post_init__()


ARGUMENT_GROUPS = (ModelArguments, DataArguments, FinetuneArguments)


def make_parser(groups: Sequence[type] = ARGUMENT_GROUPS) -> FlagParser:
    """Return the parser of the finetune flags of these groups."""
    return FlagParser(
        groups,
        prog="internvl_chat_finetune.py",
        description="Finetune an InternVL-Chat model on JSONL conversations.",
    )


def parse_arguments(argv: Sequence[str]) -> tuple[ModelArguments, DataArguments, FinetuneArguments]:
    """Parse the command line.

    Raises:
        UserError: a flag is unknown (the nearest known one is named), or a value does not fit.
    """
    model, data, training = parse_groups(ARGUMENT_GROUPS, argv)
    check_arguments(model, data, training)
    return model, data, training


def parse_data_arguments(argv: Sequence[str]) -> DataArguments:
    """Parse a command line of data flags alone; errors as above."""
    (data,) = parse_groups((DataArguments,), argv)
    check_data_arguments(data)
    return data


def parse_groups(groups: Sequence[type], argv: Sequence[str]) -> tuple:
    """Parse flags of these groups; values are not checked against each other yet. Errors as above."""
    return make_parser(groups).parse(argv)
