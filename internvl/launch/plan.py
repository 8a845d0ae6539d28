"""The torchrun command of a finetune: device, precision, DeepSpeed and flags, from settings and recipe."""

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from internvl.errors import UserError
from internvl.launch.inputs import meta_inputs
from internvl.launch.settings import Batch, Settings, count_cores, is_on

# Shown in front of the command, so that it can be pasted into any shell.
SHOWN_VARIABLES = (
    "PYTHONPATH", "PYTHONUNBUFFERED", "LAUNCHER", "TOKENIZERS_PARALLELISM", "TF_CPP_MIN_LOG_LEVEL", "OMP_NUM_THREADS",
)  # fmt: skip
ZERO_1 = "shell/deepspeed/zero_stage1_config.json"
MAX_DATA_WORKERS = 4


@dataclass(frozen=True)
class Device:
    """What trains here: ``cuda`` or ``cpu``, the precision it is best at, and how many there are (0 for a CPU)."""

    kind: str
    best_precision: str
    count: int


CPU = Device("cpu", "fp32", 0)


def detect_device(dry_run: bool) -> Device:
    """Ask torch, in a process of its own, what this machine has; a dry run without torch plans for a CPU.

    Raises:
        UserError: torch cannot say.
    """
    errors = subprocess.DEVNULL if dry_run else None
    asked = subprocess.run([sys.executable, "-m", "internvl.device"], stdout=subprocess.PIPE, stderr=errors, text=True)
    if asked.returncode == 0:
        kind, precision, count = asked.stdout.split()
        return Device(kind, precision, int(count))
    if dry_run:
        sys.stderr.write("PyTorch is not installed yet: this is the plan for a CPU.\n")
        return CPU
    raise UserError(
        f"{sys.executable}: cannot say what device this machine has (the reason is above). Repair the installation, "
        "then run this again."
    )


def check_gpus(batch: Batch, device: Device) -> None:
    """Refuse more GPUs than there are; on a CPU, GPUS is the number of processes.

    Raises:
        UserError: says how many there are.
    """
    if device.kind == "cuda" and batch.gpus > device.count:
        raise UserError(
            f"GPUS: {batch.gpus} asked for, and this machine has {device.count}. Set GPUS={device.count}, or "
            "CUDA_VISIBLE_DEVICES to more devices."
        )


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


def _choose_deepspeed(settings: Settings, device: Device) -> str:
    """Return the DeepSpeed config: ZeRO-1 on GPUs unless told; on a CPU it only costs time."""
    if "DEEPSPEED" not in settings.values:
        return ZERO_1 if device.kind == "cuda" else ""
    return "" if settings["DEEPSPEED"] == "none" else settings["DEEPSPEED"]


@dataclass(frozen=True)
class Plan:
    """A finetune that is ready to start."""

    settings: Settings
    batch: Batch
    device: Device
    precision: str
    deepspeed: str
    command: list[str]

    def command_lines(self, root: Path) -> str:
        """Return the command as three lines that can be pasted into any shell."""
        exports = (f" {name}={quote(os.environ[name])}" for name in SHOWN_VARIABLES if os.environ.get(name))
        words = " ".join(quote(word) for word in self.command)
        return f"cd {quote(str(root))}\nexport{''.join(exports)}\n{words}"

    def describe(self, root: Path) -> Iterator[str]:
        """Yield the lines of a dry run."""
        yield "Dry run: nothing is started and nothing is written.\n"
        yield str(self.batch)
        there = (
            "" if self.device.kind == "cpu" else f", GPUS {self.batch.gpus} of the {self.device.count} on this machine"
        )
        yield f"Device: {self.device.kind}, precision {self.precision}{there}"
        yield f"Output: {self.settings['OUTPUT_DIR']}\n\nFiles it would read:"
        yield _input_line("model", f"{self.settings['MODEL']}/config.json")
        meta = self.settings["META_PATH"]
        yield _input_line("meta", meta)
        for found in meta_inputs(meta) if Path(meta).is_file() else ():
            yield f"{_input_line(found.what, found.path)}  [{found.dataset}]"
        if self.deepspeed:
            yield _input_line("deepspeed", self.deepspeed)
        yield f"\nThe torchrun command:\n{self.command_lines(root)}"


def quote(text: str) -> str:
    """Return a word as a shell reads it, on one line whatever it holds."""
    return shlex.quote(text) if text.isprintable() else "$'" + "".join(map(escape, text)) + "'"


def escape(character: str) -> str:
    """Return a character as it stands in bash's ``$'…'``."""
    if character in "'\\":
        return "\\" + character
    return character if character.isprintable() else "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def _input_line(what: str, path: str) -> str:
    """Return one line of the dry run's list of files."""
    return f"    {what:<11} {path}{'' if os.path.exists(path) else ' (missing)'}"


def make_plan(settings: Settings, batch: Batch, device: Device, script: str, recipe: Sequence[str]) -> Plan:
    """Return the plan of a finetune.

    Args:
        settings: the checked settings.
        batch: how a step is divided.
        device: what trains.
        script: the finetune script, from the repository root.
        recipe: the launcher's own flags with their values; what the user passes himself is left out of them.

    Raises:
        UserError: the device cannot do what is asked for.
    """
    precision = choose_precision(settings["PRECISION"], device)
    deepspeed = _choose_deepspeed(settings, device)
    own = [
        ("--model_name_or_path", settings["MODEL"]),
        ("--meta_path", settings["META_PATH"]),
        ("--output_dir", settings["OUTPUT_DIR"]),
        ("--dataloader_num_workers", str(min(count_cores(), MAX_DATA_WORKERS))),
        *zip(recipe[::2], recipe[1::2], strict=True),
        ("--per_device_train_batch_size", str(batch.per_device)),
        ("--gradient_accumulation_steps", str(batch.steps)),
    ]
    if not settings.given & {"bf16", "fp16"}:  # they exclude each other: who passes one of them decides about both
        own += [("--bf16", "False"), ("--fp16", "False")] if precision == "fp32" else [(f"--{precision}", "True")]
    if device.kind == "cpu":
        own.append(("--use_cpu", "True"))
        # Torchrun's own choice is one thread a process.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_cores() // batch.gpus)))
    if deepspeed:
        own.append(("--deepspeed", deepspeed))
    flags = [word for flag, value in own if flag.removeprefix("--") not in settings.given for word in (flag, value)]
    return Plan(settings, batch, device, precision, deepspeed, [*torchrun(settings), script, *flags, *settings.flags])


def torchrun(settings: Settings) -> list[str]:
    """Return the words that start GPUS processes on this node; the script follows them.

    internvl.torchrun is torchrun with the exit status of the process that failed. A signal is passed on to the
    processes, which have SHUTDOWN_SECONDS to finish their step and save a checkpoint; so have those that are left
    when one died.
    """
    return [
        sys.executable,
        "-m",
        "internvl.torchrun",
        f"--nnodes={settings['NNODES']}",
        f"--node_rank={settings['NODE_RANK']}",
        f"--master_addr={settings['MASTER_ADDR']}",
        f"--nproc_per_node={settings['GPUS']}",
        f"--master_port={settings['MASTER_PORT'] or free_port()}",
        f"--shutdown_timeout={settings['SHUTDOWN_SECONDS'] or 120}",
        "--signals_to_handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    ]


def free_port() -> int:
    """Return a TCP port that nobody listens on, so that two runs on one machine do not meet."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def uses_cpu(settings: Settings) -> bool:
    """Whether the user asks for the CPU (``--use_cpu True``)."""
    return is_on(settings["USE_CPU"])
