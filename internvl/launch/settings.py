"""The settings of a finetune: from the launcher and the environment, overruled by flags; and the batch arithmetic."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from internvl.errors import UserError

# A flag that says the same as a setting changes the setting: checks, arithmetic and log follow it.
SETTING_OF_FLAG = {
    "model_name_or_path": "MODEL",
    "meta_path": "META_PATH",
    "output_dir": "OUTPUT_DIR",
    "deepspeed": "DEEPSPEED",
    "resume_from_checkpoint": "RESUME",
    "per_device_train_batch_size": "PER_DEVICE_BATCH_SIZE",
    "gradient_accumulation_steps": "GRADIENT_ACC",
    "use_cpu": "USE_CPU",
}
MAY_BE_BARE = {"use_cpu": "True", "resume_from_checkpoint": "True"}
INPUT_PATHS, OUTPUT_PATHS = {"MODEL", "META_PATH", "RESUME", "DEEPSPEED"}, {"OUTPUT_DIR"}
PORT_OF_SEVERAL_NODES = 34229  # the nodes have to agree on it, so it cannot be just any free one


def is_on(value: str | None) -> bool:
    """Whether a switch is on: not for an empty value, 0, false, no and off."""
    return (value or "0").lower() not in ("0", "false", "no", "off")


def resolve_input(path: str, invoked_from: Path, root: Path) -> str:
    """Return a path that the user typed, right from the repository root.

    It is the one in the folder where the command was typed if it exists there, otherwise the one under the root.
    """
    if not path.startswith("/") and (invoked_from / path).exists():
        return resolve_output(path, invoked_from, root)
    return f"./{path}" if path.startswith("-") else path  # or it would be read as a flag


def resolve_output(path: str, invoked_from: Path, root: Path) -> str:
    """Return the same for something that may not exist yet: relative to where the command was typed."""
    if path.startswith("/"):
        return path
    if not invoked_from.samefile(root):
        return f"{invoked_from}/{path}"
    return f"./{path}" if path.startswith("-") else path


@dataclass
class Settings:
    """What a finetune is asked for; ``flags`` are the user's own, as the finetune script gets them.

    ``given`` are the names of those flags, without dashes in front and with underscores.
    """

    values: dict[str, str]
    flags: list[str] = field(default_factory=list)
    given: set[str] = field(default_factory=set)

    def __getitem__(self, name: str) -> str:
        return self.values.get(name, "")

    def number(self, name: str) -> int:
        """Return a setting that is a whole number of 1 or more.

        Raises:
            UserError: it is not.
        """
        return check_positive(name, self[name])


def check_positive(name: str, value: str, example: int = 1) -> int:
    """Return ``value`` as a whole number from 1 to 999,999,999.

    Raises:
        UserError: it is not one.
    """
    if not re.fullmatch(r"[1-9][0-9]{0,8}", value):
        raise UserError(
            f"{name}: expected a whole number of 1 or more, found '{value}'. Set for example {name}={example}."
        )
    return int(value)


def read_settings(environment: Mapping[str, str], flags: Sequence[str], invoked_from: Path, root: Path) -> Settings:
    """Return the settings of ``environment`` as the user's ``flags`` overrule them.

    Args:
        environment: the variables that the launcher has set; paths in them are resolved already, but for DEEPSPEED.
        flags: what the user wrote behind the launcher's name.
        invoked_from: the folder where that was.
        root: the repository.

    Raises:
        UserError: a flag that has a setting comes without its value.
    """
    settings = Settings(dict(environment))
    deepspeed = environment.get("DEEPSPEED")
    if deepspeed and deepspeed != "none":
        settings.values["DEEPSPEED"] = resolve_input(deepspeed, invoked_from, root)
    rest = list(flags)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        name = name.removeprefix("--").replace("-", "_") if name.startswith("--") else ""
        if name:
            settings.given.add(name)
        setting = SETTING_OF_FLAG.get(name)
        if setting is None:
            settings.flags.append(word)
            continue
        if not equals:
            if rest and not rest[0].startswith("--"):
                value = rest.pop(0)
            elif name in MAY_BE_BARE:
                value = MAY_BE_BARE[name]
            else:
                raise UserError(f"--{name}: has no value. Write it after the flag: --{name} VALUE.")
        if setting == "DEEPSPEED" and value in ("", "none"):
            settings.values[setting] = value  # a setting only: the flag itself takes nothing but a file
            continue
        if setting in INPUT_PATHS:
            value = resolve_input(value, invoked_from, root)
        elif setting in OUTPUT_PATHS:
            value = resolve_output(value, invoked_from, root)
        settings.values[setting] = value
        settings.flags += [f"--{name}", value]
    return settings


@dataclass(frozen=True)
class Batch:
    """How the rows of an optimizer step are divided: ``size`` = ``per_device`` × ``gpus`` × ``nodes`` × ``steps``."""

    size: int
    per_device: int
    gpus: int
    nodes: int
    steps: int

    def __str__(self) -> str:
        return (
            f"BATCH_SIZE {self.size} = {_plural(self.per_device, 'row')} per device x {_plural(self.gpus, 'process')} "
            f"x {_plural(self.nodes, 'node')} x {_plural(self.steps, 'accumulation step')}"
        )


def _plural(count: int, noun: str) -> str:
    """Return ``1 node``, ``2 nodes``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('s') else 's'}"


def divide_batch(settings: Settings) -> Batch:
    """Return the division of a step: GRADIENT_ACC from BATCH_SIZE, or the other way round where the flag is given.

    Raises:
        UserError: a number is not one, or BATCH_SIZE does not divide; names those next to it that do.
    """
    steps = (
        check_positive("--gradient_accumulation_steps", settings["GRADIENT_ACC"], 4) if settings["GRADIENT_ACC"] else 0
    )
    size = check_positive("BATCH_SIZE", settings["BATCH_SIZE"], 16) if not steps else 0
    per_device = check_positive("PER_DEVICE_BATCH_SIZE", settings["PER_DEVICE_BATCH_SIZE"], 4)
    gpus, nodes = settings.number("GPUS"), settings.number("NNODES")
    rows = per_device * gpus * nodes
    if steps:
        return Batch(steps * rows, per_device, gpus, nodes, steps)
    if size % rows == 0:
        return Batch(size, per_device, gpus, nodes, size // rows)
    # Rounding would train with another batch size than the one asked for, and say nothing.
    lower = size // rows * rows
    advice = f"BATCH_SIZE={lower} or BATCH_SIZE={lower + rows}" if lower else f"BATCH_SIZE={rows}"
    nearest = nearest_per_device(size, per_device, gpus * nodes)
    raise UserError(
        f"BATCH_SIZE={size} cannot be split: PER_DEVICE_BATCH_SIZE ({per_device}) x GPUS ({gpus}) x NNODES ({nodes}) "
        f"= {rows} rows per forward pass, and {size} / {rows} is not whole. Use {advice}"
        f"{f', or PER_DEVICE_BATCH_SIZE={nearest}' if nearest else ''}."
    )


def nearest_per_device(size: int, per_device: int, processes: int) -> int | None:
    """Return the PER_DEVICE_BATCH_SIZE next to ``per_device`` that splits ``size``; of two the one of less memory.

    None where ``size`` does not even split over the processes.
    """
    if size % processes:
        return None
    share = size // processes
    divisors = [number for number in range(1, share + 1) if share % number == 0]
    return min(divisors, key=lambda number: (abs(number - min(per_device, share)), number))


def check_nodes(settings: Settings) -> None:
    """Check what several nodes have to agree on, and fill in the address and port that are the default.

    Raises:
        UserError: NODE_RANK, MASTER_ADDR or MASTER_PORT does not fit.
    """
    nodes, rank = settings.number("NNODES"), settings["NODE_RANK"]
    if not re.fullmatch(r"0|[1-9][0-9]{0,8}", rank) or int(rank) >= nodes:
        raise UserError(
            f"NODE_RANK: expected a number from 0 to {nodes - 1} (NNODES is {nodes}), found '{rank}'. Give each node "
            "its own number, the first one 0."
        )
    if nodes > 1 and not settings["MASTER_ADDR"]:
        raise UserError(
            f"MASTER_ADDR: not set, and NNODES is {nodes}. Set it on every node to the address of the node with "
            "NODE_RANK=0."
        )
    port = settings["MASTER_PORT"] or (str(PORT_OF_SEVERAL_NODES) if nodes > 1 else "")
    if port and not (re.fullmatch(r"[1-9][0-9]{0,4}", port) and int(port) < 65536):
        raise UserError(f"MASTER_PORT: expected a port from 1 to 65535, found '{port}'. Unset it to get a free one.")
    settings.values |= {"MASTER_ADDR": settings["MASTER_ADDR"] or "127.0.0.1", "MASTER_PORT": port}


def count_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
