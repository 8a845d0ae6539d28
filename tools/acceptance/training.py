"""Stage "train": time, memory and kernels of training a model of InternVL2-2B's shape, by the real command."""

import os
import re
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from acceptance.checks import Figures, Setting, check, needs_package, require
from acceptance.material import base, logged_losses, rows
from torch.profiler import ProfilerActivity, profile

from internvl.train import internvl_chat_finetune
from internvl.train.memory import MemoryPlan, read_peak, reset_peak
from internvl.train.trainer import FinetuneTrainer

GIB = 1 << 30
SETTLED = 5  # micro-batches before it counts how long one takes
SLOWEST = 3.0  # the slowest micro-batch may take so many times the median
TFLOP_A_GROUP = 20.4  # five captions of an image of 7 tiles, without recomputation: docs/scaling.md counts it
# What the cards can at most, in TFLOP/s of bfloat16 without sparsity, as their makers say.
PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "4090": 165}
# Rows a second that an H100 is expected to train at least, by groups a micro-batch.
EXPECTED = {1: 42, 4: 60}
RECIPE = [
    *["--freeze_llm", "True", "--freeze_mlp", "True", "--freeze_backbone", "True", "--use_llm_lora", "128"],
    *["--learning_rate", "4e-5", "--logging_steps", "1", "--save_strategy", "no", "--report_to", "none"],
    *["--disable_tqdm", "True", "--overwrite_output_dir", "True"],
]
SHARED = ["--share_image_prefix", "True"]


@dataclass
class Watch:
    """What was seen of a training: seconds and rows of each micro-batch, and the memory plan.

    ``probe`` is the number of the micro-batch that is looked at more closely, by ``probe_with``.
    """

    seconds: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    plan: MemoryPlan | None = None
    wall: float = 0.0
    losses: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)


@contextmanager
def watched(probes: dict | None = None) -> Iterator[Watch]:
    """Watch the trainings inside; ``probes``: number of a micro-batch → a context manager to run it in."""
    watch, step, plan = Watch(), FinetuneTrainer.training_step, internvl_chat_finetune.plan_memory
    log = FinetuneTrainer.log
    events: list[tuple] = []

    def mark():
        if not torch.cuda.is_available():
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def timed(self, model, batch, num_items_in_batch=None):
        context = (probes or {}).get(len(events))
        rows_here = len(set(batch.rows))
        before = mark()
        if context is None:
            loss = step(self, model, batch, num_items_in_batch)
        else:
            with context:
                loss = step(self, model, batch, num_items_in_batch)
        events.append((before, mark()))
        watch.rows.append(rows_here)
        return loss

    def planned(*args, **kwargs):
        watch.plan = plan(*args, **kwargs)
        return watch.plan

    def logged(self, logs, start_time=None):
        log(self, logs, start_time)
        if "loss" in logs:
            watch.losses.append(logs["loss"])
            watch.waits.append(logs["data_wait"])

    FinetuneTrainer.training_step, internvl_chat_finetune.plan_memory, FinetuneTrainer.log = timed, planned, logged
    try:
        yield watch
    finally:
        FinetuneTrainer.training_step, internvl_chat_finetune.plan_memory, FinetuneTrainer.log = step, plan, log
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        watch.seconds = [before.elapsed_time(after) / 1000 for before, after in events]
    else:
        watch.seconds = [after - before for before, after in events]


def train(
    setting: Setting, figures: Figures, *flags: str, meta: Path, per_device: int = 5, groups: int = 1, probes=None
) -> Watch:
    """Train 30 micro-batches in this process, note its figures, and require what every training has to hold.

    Args:
        setting: where.
        figures: get time, rows a second, memory beside the plan.
        flags: of the finetune, beside the recipe.
        meta: the data.
        per_device: rows of a group.
        groups: groups a micro-batch.
        probes: as of :func:`watched`.

    Raises:
        Failed: a loss is no number, more memory was taken than planned, or a micro-batch took very long.
    """
    steps, accumulation = setting.size(10, 2), setting.size(3, 2)
    given = ["--model_name_or_path", str(base(setting)), "--meta_path", str(meta), "--output_dir"]
    given += [str(setting.work / "trained"), "--max_steps", str(steps), "--use_cpu", str(setting.rehearsal)]
    given += ["--per_device_train_batch_size", str(per_device * groups), "--dataloader_num_workers"]
    given += [str(setting.size(8, 0)), "--gradient_accumulation_steps", str(accumulation)]
    if not setting.rehearsal:
        given += ["--bf16", "True"]
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()
    with watched(probes) as watch:
        started = time.perf_counter()
        internvl_chat_finetune.main([*given, *RECIPE, *flags])
        watch.wall = time.perf_counter() - started
    settled = watch.seconds[SETTLED:] or watch.seconds
    median = statistics.median(settled)
    figures["milliseconds"] = {
        "median": 1000 * median,
        "p95": 1000 * sorted(settled)[int(0.95 * (len(settled) - 1))],
        "max": 1000 * max(settled),
        "first": 1000 * watch.seconds[0],
    }
    figures["rows_per_second"] = sum(watch.rows[-len(settled) :]) / sum(settled)
    figures["data_wait"] = statistics.mean(watch.waits[1:] or watch.waits)
    figures["losses"] = [watch.losses[0], watch.losses[-1]]
    peak = read_peak() if setting.rehearsal else torch.cuda.max_memory_allocated()
    figures["peak_gib"], figures["planned_gib"] = peak / GIB, watch.plan.total / GIB
    figures["recomputed_layers"] = watch.plan.num_recomputed
    if not setting.rehearsal:
        figures["reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
        name = torch.cuda.get_device_name()
        rate = figures["rows_per_second"] / 5 * TFLOP_A_GROUP
        figures["mfu"] = {card: rate / tflops for card, tflops in PEAK_TFLOPS.items() if card in name}
        require(max(settled) <= SLOWEST * median, f"a micro-batch took {max(settled) / median:.1f} times the median")
        require(peak <= watch.plan.total, f"{peak / GIB:.2f} GiB were taken, {watch.plan.total / GIB:.2f} planned")
    require(all(loss == loss and abs(loss) < 1e4 for loss in watch.losses), f"losses: {watch.losses}")
    return watch


def finetune(setting: Setting, out: Path, steps: int, *flags: str) -> list[float]:
    """Train on pictures with shared prefixes, a group of five captions at once; return the losses of the steps.

    Args:
        setting: where.
        out: the output folder.
        steps: optimizer steps.
        flags: of the finetune, beside the recipe.
    """
    given = ["--model_name_or_path", str(base(setting)), "--meta_path", str(pictures(setting)), "--output_dir"]
    given += [str(out), "--max_steps", str(steps), "--per_device_train_batch_size", "5", "--use_cpu"]
    given += [str(setting.rehearsal), "--bf16", str(not setting.rehearsal)]
    internvl_chat_finetune.main([*given, *RECIPE, *SHARED, *flags])
    return logged_losses(out)


def pictures(setting: Setting) -> Path:
    """Return the meta file of pictures with five captions each."""
    return rows(setting, "pictures", images=setting.size(200, 8))


def _tiles(setting: Setting) -> list[str]:
    return ["--max_dynamic_patch", str(setting.size(6, 2))]


@check("train", 240)
def checkpoint(setting: Setting, figures: Figures) -> None:
    """The random 2B checkpoint and the made-up rows are written."""
    figures["gigabytes"] = sum(file.stat().st_size for file in base(setting).glob("*.safetensors")) / 1e9
    pictures(setting)


def _rate(setting: Setting, figures: Figures, groups: int) -> None:
    train(setting, figures, *SHARED, *_tiles(setting), meta=pictures(setting), groups=groups)
    if not setting.rehearsal and "H100" in torch.cuda.get_device_name():
        reached = figures["rows_per_second"]
        require(reached >= EXPECTED[groups], f"{reached:.1f} rows/s, where an H100 should reach {EXPECTED[groups]}")


@check("train", 120)
def one_group(setting: Setting, figures: Figures) -> None:
    """One image with its five captions a micro-batch."""
    _rate(setting, figures, 1)


@check("train", 150)
def four_groups(setting: Setting, figures: Figures) -> None:
    """Four images with their captions a micro-batch."""
    _rate(setting, figures, 4)


@check("train", 120)
def zero_stage_1(setting: Setting, figures: Figures) -> None:
    """One group a micro-batch with DeepSpeed's ZeRO-1."""
    needs_package("deepspeed")
    # As torchrun sets it for one process.
    os.environ |= {"TORCHELASTIC_RUN_ID": "acceptance", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    flags = ["--deepspeed", "shell/deepspeed/zero_stage1_config.json"]
    train(setting, figures, *SHARED, *_tiles(setting), *flags, meta=pictures(setting))


@check("train", 120)
def no_dropout(setting: Setting, figures: Figures) -> None:
    """One group a micro-batch without dropout in front of LoRA."""
    train(setting, figures, *SHARED, *_tiles(setting), "--lora_dropout", "0", meta=pictures(setting))


@check("train", 120)
def recomputed(setting: Setting, figures: Figures) -> None:
    """One group a micro-batch, all layers recomputing their activations."""
    train(setting, figures, *SHARED, *_tiles(setting), "--grad_checkpoint", "True", meta=pictures(setting))


@check("train", 120)
def packed(setting: Setting, figures: Figures) -> None:
    """Some 9,000 tokens of packed rows a micro-batch."""
    train(setting, figures, "--packing", "True", *_tiles(setting), meta=pictures(setting))


@check("train", 120)
def short_rows(setting: Setting, figures: Figures) -> None:
    """A hundred short rows of text a micro-batch, each a group of its own."""
    meta = rows(setting, "texts", images=0, captions=setting.size(4000, 60), words=(20, 60))
    train(setting, figures, "--packing", "True", meta=meta, per_device=setting.size(100, 10))


@check("train", 120)
def little_memory(setting: Setting, figures: Figures) -> None:
    """A plan for 12 GiB of memory holds: layers recompute, and nothing runs out."""
    if not setting.rehearsal:
        _, total = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction(12 * GIB / total)
        from internvl.train import memory

        memory.available_bytes = lambda device: int(12 * GIB * memory.DEVICE_SHARE)
    train(setting, figures, *SHARED, *_tiles(setting), meta=pictures(setting), groups=2)


@check("train", 150)
def kernels(setting: Setting, figures: Figures) -> None:
    """Kernels of a micro-batch, how busy they keep the device, and where the program waits for it."""
    activities = [ProfilerActivity.CPU] + ([] if setting.rehearsal else [ProfilerActivity.CUDA])
    profiled, waits = profile(activities=activities), _SyncCount(setting)
    probes = {setting.size(12, 1): profiled, setting.size(16, 2): waits}
    train(setting, figures, *SHARED, *_tiles(setting), meta=pictures(setting), probes=probes)
    device_events = [event for event in profiled.events() if "cuda" in str(event.device_type).lower()]
    figures["kernels"] = len(device_events)
    figures["operators"] = len(profiled.events())
    if device_events:
        span = max(e.time_range.end for e in device_events) - min(e.time_range.start for e in device_events)
        figures["busy"] = sum(e.time_range.elapsed_us() for e in device_events) / span
    figures["waits"] = dict(waits.lines.most_common(10))
    profiled.export_chrome_trace(str(setting.work / "micro_batch_trace.json.gz"))


class _SyncCount:
    """Counts, by line, where the program waits for the GPU."""

    def __init__(self, setting: Setting):
        self.on_gpu = not setting.rehearsal
        self.lines: Counter[str] = Counter()
        self.catch = warnings.catch_warnings(record=True)

    def __enter__(self) -> None:
        self.caught = self.catch.__enter__()
        warnings.simplefilter("always")
        if self.on_gpu:
            torch.cuda.set_sync_debug_mode("warn")

    def __exit__(self, *error) -> None:
        if self.on_gpu:
            torch.cuda.set_sync_debug_mode("default")
        self.catch.__exit__(*error)
        for warning in self.caught or []:
            if re.search("synchroniz", str(warning.message)):
                self.lines[f"{Path(warning.filename).name}:{warning.lineno}"] += 1
