"""The ways to train that benchmarks/train.py compares, and the measurement of one of them in a process of its own.

Every way goes through transformers' ``Trainer`` with the same settings: LoRA on all linear layers of the language
model, AdamW, clipped gradients, the rows of one optimizer step over and over. The rows are ready in memory.
"""

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import psutil
import torch
from peft import LoraConfig, get_peft_model
from random_checkpoint import image_token_id
from torch import nn
from torch.nn import functional as F
from torch.profiler import profile
from train_rows import MadeUpRows, RowShape
from transformers import InternVLForConditionalGeneration, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from internvl.data.batch import Collator, Sample
from internvl.data.sampling import choose_strategy
from internvl.model.adapter import choose_trainable
from internvl.model.internvl_chat.causal_lm import IGNORE_INDEX
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.loading import choose_attention
from internvl.model.lora_recipe import LoraRecipe
from internvl.model.vision_cache import VisionCache, image_features
from internvl.train.epoch_plan import EpochPlan
from internvl.train.memory import peak_bytes, recompute_activations, reset_peak
from internvl.train.trainer import FinetuneTrainer

MIB = 1 << 20
CACHE_BYTES = 10**11
HF_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@dataclass(frozen=True)
class Way:
    """How the rows of a step go through the model.

    ``share`` the tokens of an image among its rows; ``packed`` micro-batches, without padding; ``grouped`` by length
    where they are padded; ``recompute`` activations in all layers; ``published`` does what the original does beside
    that: pixel values in float, logits of all positions, and the loss of those; ``hf`` is transformers' own model.
    ``cache`` keeps features: "new" ones of images never seen before, or it is "filled" with those of all images.
    """

    label: str
    share: bool = False
    packed: bool = False
    grouped: bool = True
    recompute: bool = False
    published: bool = False
    hf: bool = False
    cache: str = ""


WAYS = {
    "ours": Way("ours", share=True),
    "plain": Way("plain", recompute=True, published=True),
    "plain_kept": Way("plain, all kept", published=True),
    "hf": Way("transformers", recompute=True, published=True, hf=True),
    # With gradient checkpointing PEFT makes all inputs of layers require gradients, the vision encoder's, too, and the
    # backward pass goes through it though it is frozen. Without, it does not.
    "hf_kept": Way("transformers, all kept", published=True, hf=True),
    "packed": Way("packed", packed=True),
    "padded": Way("padded", grouped=False),
    "padded_by_length": Way("padded by length"),
    "first_epoch": Way("first epoch", share=True, cache="new"),
    "second_epoch": Way("second epoch", share=True, cache="filled"),
}


@dataclass(frozen=True)
class Task:
    """One way to be measured once: what its process needs to know. ``dtype`` is fp32 or bf16."""

    way: str
    published: str
    transformers: str
    rows: RowShape
    per_device: int
    warm_up: int
    steps: int
    rank: int
    dtype: str
    threads: int | None = None
    trace: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Task":
        content = json.loads(text)
        return cls(**{**content, "rows": RowShape(**content["rows"])})


class FullLogitsTrainer(FinetuneTrainer):
    """Computes the loss as the original model does: from the logits of all positions, shifted copies of them."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        logits = model(**inputs, return_logits=True).logits
        logits, targets = logits[:, :-1].contiguous(), labels[:, 1:].contiguous()
        losses = F.cross_entropy(
            logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=IGNORE_INDEX, reduction="sum"
        )
        return losses / num_items_in_batch


class StepWatch(TrainerCallback):
    """Takes the time of optimizer steps, the making of their batches included, and their peak memory.

    The first ``warm_up`` steps count for neither. ``trace`` is a file for a profile of the first step behind them.
    """

    def __init__(self, warm_up: int, trace: str | None):
        self.warm_up = warm_up
        self.trace = trace
        self.seconds: list[float] = []
        self.start = self.peak = 0
        self.last = 0.0
        self.profile = profile() if trace else None

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = used_bytes()
        self.begin()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step > self.warm_up:
            self.seconds.append(now() - self.last)
            self.peak = peak_bytes(args.device)
            if self.profile and state.global_step == self.warm_up + 1:
                self.profile.stop()
                self.profile.export_chrome_trace(self.trace)
        self.begin(state.global_step)

    def begin(self, steps_done: int = 0) -> None:
        """Begin to measure the next step; behind the warm-up everything anew."""
        if steps_done == self.warm_up:
            forget_peak()
            if self.profile:
                self.profile.start()
        self.last = now()


def now() -> float:
    """Return the seconds of a clock, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def used_bytes() -> int:
    """Return the bytes in use: of tensors on the device, or resident ones of this process on a CPU."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss


def forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()


def same_adapters(model: nn.Module) -> None:
    """Give LoRA's A in all layers the same values and B zeros, as at the start of a training.

    Then the gradients of the first step have the same norm in every way: transformers has three matrices where the
    published layout has one, and would draw three times.
    """
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            generator = torch.Generator().manual_seed(0)
            values = torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5
            parameter.data.copy_(values)


def load_ours(folder: str, dtype: torch.dtype, rank: int) -> InternVLChatModel:
    """Load the published layout as a finetune does: frozen weights in ``dtype``, LoRA in float32."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    attention = choose_attention(dtype, device)
    model = InternVLChatModel.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
    model.img_context_token_id = image_token_id(model.config)
    choose_trainable(
        model, freeze_llm=True, freeze_backbone=True, freeze_mlp=True, use_llm_lora=rank, lora=LoraRecipe(dropout=0.0)
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def load_theirs(folder: str, dtype: torch.dtype, rank: int) -> nn.Module:
    """Load transformers' layout with PEFT's LoRA on the same matrices."""
    model = InternVLForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    settings = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=HF_TARGETS, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, settings)


def training_arguments(task: Task, folder: str, rows_per_step: int, checkpointing: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=task.per_device,
        gradient_accumulation_steps=rows_per_step // task.per_device,
        max_steps=task.warm_up + task.steps,
        learning_rate=4e-5,
        weight_decay=0.01,
        lr_scheduler_type="constant",
        bf16=task.dtype == "bf16",
        gradient_checkpointing=checkpointing,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
    )


def hf_batch(collator: Collator, samples: list[Sample]) -> dict:
    """Return a padded batch as transformers' model takes it."""
    return {name: value for name, value in collator(samples).inputs.items() if name != "image_flags"}


def make_trainer(task: Task, folder: str) -> tuple[Trainer, MadeUpRows]:
    """Return the trainer of a way, with its model and rows; ``folder`` is for what it writes."""
    way, dtype = WAYS[task.way], torch.bfloat16 if task.dtype == "bf16" else torch.float32
    config = InternVLChatConfig.from_pretrained(task.published)
    collator = Collator(
        config.llm_config.pad_token_id,
        config.image_size,
        packed=way.packed or way.share,
        keep_images=bool(way.cache),
    )
    make_rows = partial(MadeUpRows, task.rows, config, float_pixels=way.published)
    if way.hf:
        rows = make_rows()
        model = load_theirs(task.transformers, dtype, task.rank)
        arguments = training_arguments(task, folder, len(rows), checkpointing=way.recompute)
        collate = partial(hf_batch, collator)
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
    else:
        model = load_ours(task.published, dtype, task.rank)
        if way.recompute:
            recompute_activations(model, model.config.llm_config.num_hidden_layers)
        cache = VisionCache(Path(folder) / "features", model, max_bytes=CACHE_BYTES) if way.cache else None
        rows = make_rows(vision_cache=cache, always_new=way.cache == "new")
        groups = rows.groups(share=way.share, grouped=way.grouped)
        trainer_class = FullLogitsTrainer if way.published else FinetuneTrainer
        trainer = trainer_class(
            model=model,
            args=training_arguments(task, folder, len(rows), checkpointing=False),
            train_dataset=rows,
            data_collator=collator,
            output=None,  # nothing is saved
            plan=EpochPlan(
                groups,
                choose_strategy(groups.groups, task.per_device * int(max(rows.lengths)) if way.packed else None),
                rows.lengths,
                max_tiles=task.rows.tiles,
                packed=collator.packed,
                weighted=way.share,
            ),
            vision_cache=cache,
        )
        if way.cache == "filled":
            image_features(trainer.model, rows.images, cache)
    same_adapters(model)
    trainer.remove_callback(PrinterCallback)
    return trainer, rows


def touch(model: nn.Module) -> None:
    """Read all weights, which are mapped from files and take no memory before."""
    for parameter in model.parameters():
        parameter.detach().sum()


def measure(task: Task) -> dict:
    """Train as the task says and return its figures; loss and gradient norm are those of the first step."""
    if task.threads:
        torch.set_num_threads(task.threads)
    with tempfile.TemporaryDirectory() as folder:
        trainer, rows = make_trainer(task, folder)
        touch(trainer.model)
        watch = StepWatch(task.warm_up, task.trace)
        trainer.add_callback(watch)
        trainer.train()
    first = trainer.state.log_history[0]
    return {
        "seconds": watch.seconds,
        "tokens": sum(rows.lengths),
        "peak_mib": watch.peak / MIB,
        "above_start_mib": (watch.peak - watch.start) / MIB,
        "loss": first["loss"],
        "grad_norm": first["grad_norm"],
    }
