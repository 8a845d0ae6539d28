"""A finetune as a launcher starts it: its settings checked, its command made for the device, its output logged."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from internvl.distributed import count_cores
from internvl.errors import UserError
from internvl.launch.command import CPU, Device, command_lines, detect_device, prepare_device, torchrun
from internvl.launch.config import with_config
from internvl.launch.flags import Paths
from internvl.launch.inputs import check_meta_inputs, check_model_and_meta, meta_inputs
from internvl.launch.process import run_logged
from internvl.launch.settings import Settings, read_settings

ZERO_1 = "shell/deepspeed/zero_stage1_config.json"
MAX_DATA_WORKERS = {"cpu": 4, "cuda": 8}


def read(call: Sequence[str], typed: Sequence[str]) -> Settings:
    """Return the settings of a launcher's call, checked as far as that costs nothing; a dry run may lack files.

    Raises:
        UserError: a setting or a file that it names does not fit.
    """
    paths = Paths()
    settings = read_settings(call, with_config(os.environ.get("CONFIG"), typed, paths), os.environ, paths)
    if not settings.dry_run:
        check_model_and_meta(settings)
    return settings


def start(settings: Settings) -> int:
    """Train, or say what would be done where it is a dry run; return the exit status.

    Raises:
        UserError: the device or a file does not fit.
    """
    device = CPU if settings.use_cpu else detect_device(settings.dry_run)
    prepare_device(device, settings.batch.gpus, settings.dry_run)
    plan = make_plan(settings, device)
    if settings.dry_run:
        print(*plan.describe(), sep="\n")
        return 0
    check_meta_inputs(settings.meta_path)
    log = Path(settings.output_dir) / "training_log.txt"
    head = f"{settings.batch}\n{command_lines(plan.command)}\n"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(head)
    except OSError as err:
        raise UserError(
            f"{log.parent}: cannot be written ({err.strerror}). Set OUTPUT_DIR to a folder where you may write."
        ) from err
    print(head, end="", flush=True)
    if settings.debug:
        os.execv(plan.command[0], plan.command)
    return run_logged(plan.command, log)


@dataclass(frozen=True)
class Plan:
    """A finetune that is ready to start."""

    settings: Settings
    device: Device
    precision: str
    deepspeed: str
    command: list[str]

    def describe(self) -> Iterator[str]:
        """Yield the lines of a dry run."""
        settings, device = self.settings, self.device
        yield "Dry run: nothing is started and nothing is written.\n"
        yield str(settings.batch)
        of_how_many = f", GPUS {settings.batch.gpus} of the {device.count} on this machine" if device.count else ""
        yield f"Device: {device.kind}, precision {self.precision}{of_how_many}"
        yield f"Output: {settings.output_dir}\n\nFiles it would read:"
        yield _input_line("model", f"{settings.model}/config.json")
        yield _input_line("meta", settings.meta_path)
        for found in meta_inputs(settings.meta_path) if Path(settings.meta_path).is_file() else ():
            yield f"{_input_line(found.what, found.path)}  [{found.dataset}]"
        if self.deepspeed:
            yield _input_line("deepspeed", self.deepspeed)
        yield f"\nThe torchrun command:\n{command_lines(self.command)}"


def _input_line(what: str, path: str) -> str:
    """Return one line of the dry run's list of files."""
    return f"    {what:<11} {path}{'' if os.path.exists(path) else ' (missing)'}"


def make_plan(settings: Settings, device: Device) -> Plan:
    """Return the plan of a finetune; a flag that the user passes himself takes the place of the launcher's.

    Raises:
        UserError: the device cannot train in the precision asked for.
    """
    precision = choose_precision(settings.precision, device)
    deepspeed = settings.deepspeed
    if deepspeed is None:
        # On a CPU it only costs time. LoRA's optimizer is small enough for each GPU of a node to hold it whole, and
        # DDP adds gradients up in float32.
        shards = device.kind == "cuda" and (settings.nodes.count > 1 or not settings.trains_lora)
        deepspeed = ZERO_1 if shards else ""
        if deepspeed and settings.batch.fits_memory:
            raise UserError(
                f"PER_DEVICE_BATCH_SIZE: is auto, and this training takes {ZERO_1}, which has to know it. Name a "
                "number, or set DEEPSPEED=none where a GPU holds gradients and optimizer whole."
            )
    share = count_cores() // (settings.batch.gpus if device.count else 1)
    workers = 0 if settings.debug else max(1, min(share, MAX_DATA_WORKERS[device.kind]))
    own = [
        ("--model_name_or_path", settings.model),
        ("--meta_path", settings.meta_path),
        ("--output_dir", settings.output_dir),
        ("--per_device_train_batch_size", str(settings.batch.per_device)),
        ("--gradient_accumulation_steps", str(settings.batch.steps)),
        ("--dataloader_num_workers", str(workers)),
        *([("--auto_micro_batch", "True")] if settings.batch.fits_memory else []),
        *zip(settings.recipe[::2], settings.recipe[1::2], strict=True),
    ]
    if not settings.given & {"bf16", "fp16"}:  # they exclude each other: who passes one of them decides about both
        own += [("--bf16", "False"), ("--fp16", "False")] if precision == "fp32" else [(f"--{precision}", "True")]
    if device.kind == "cpu":
        own.append(("--use_cpu", "True"))
    if device.kind == "cuda" and workers and "dataloader_num_workers" not in settings.given:
        # A step's micro-batches are all fetched before the first one is computed: the next step's are made meanwhile.
        own.append(("--dataloader_prefetch_factor", str(-(-settings.batch.steps // workers) + 1)))
    if deepspeed:
        own.append(("--deepspeed", deepspeed))
    flags = [word for flag, value in own if flag.removeprefix("--") not in settings.given for word in (flag, value)]
    start = [sys.executable] if settings.debug else torchrun(settings.batch.gpus, settings.nodes)
    command = [*start, settings.script, *flags, *settings.flags]
    return Plan(settings, device, precision, deepspeed, command)


def choose_precision(asked: str, device: Device) -> str:
    """Return the precision: for ``auto`` what the device is best at.

    Raises:
        UserError: it is not a precision, or the device cannot train in it.
    """
    if asked == "auto":
        return device.best_precision
    if asked not in ("bf16", "fp16", "fp32"):
        raise UserError(f"PRECISION: expected auto, bf16, fp16 or fp32, found '{asked}'. Use PRECISION=auto.")
    if asked == "fp16" and device.kind == "cpu":
        raise UserError("PRECISION: fp16 asked for, and a CPU cannot train in it. Use PRECISION=fp32.")
    if asked == "bf16" and device.kind == "cuda" and device.best_precision != "bf16":
        raise UserError("PRECISION: bf16 asked for, and this machine's GPUs do not have it. Use PRECISION=fp16.")
    return asked
