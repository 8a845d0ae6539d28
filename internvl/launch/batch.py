"""The batch arithmetic: how the rows of an optimizer step are divided over devices and forward passes."""

import re
from dataclasses import dataclass

from internvl.errors import UserError

AUTO = "auto"


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


@dataclass(frozen=True)
class Batch:
    """How the rows of an optimizer step are divided: ``size`` = ``per_device`` × ``gpus`` × ``nodes`` × ``steps``.

    ``fits_memory``: the finetune divides the rows of a device into forward passes, as memory allows.
    """

    size: int
    per_device: int
    gpus: int
    nodes: int
    steps: int
    fits_memory: bool = False

    def __str__(self) -> str:
        if self.fits_memory:
            return (
                f"BATCH_SIZE {self.size} = {_plural(self.per_device, 'row')} per device x "
                f"{_plural(self.gpus, 'process')} x {_plural(self.nodes, 'node')}, as many at once as fit into memory"
            )
        return (
            f"BATCH_SIZE {self.size} = {_plural(self.per_device, 'row')} per device x {_plural(self.gpus, 'process')} "
            f"x {_plural(self.nodes, 'node')} x {_plural(self.steps, 'accumulation step')}"
        )


def _plural(count: int, noun: str) -> str:
    """Return ``1 node``, ``2 nodes``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('s') else 's'}"


def divide_batch(batch_size: str, per_device: str, gpus: str, nodes: str, steps: str = "auto") -> Batch:
    """Return the division of a step.

    Args:
        batch_size: BATCH_SIZE, the rows an optimizer step learns from; not read where ``steps`` is a number.
        per_device: PER_DEVICE_BATCH_SIZE, the rows of a forward pass; ``auto`` for as many as fit into memory.
        gpus: GPUS, the processes on a node.
        nodes: NNODES.
        steps: GRADIENT_ACC, the forward passes of a step; ``auto`` for as many as ``batch_size`` takes.

    Raises:
        UserError: a number is not one, or BATCH_SIZE does not divide; names those next to it that do.
    """
    if steps == AUTO:
        size = check_positive("BATCH_SIZE", batch_size, 16)
    else:
        num_steps = check_positive("--gradient_accumulation_steps", steps, 4)
    num_gpus, num_nodes = check_positive("GPUS", gpus), check_positive("NNODES", nodes)
    if per_device == AUTO:
        if steps != AUTO:
            raise UserError(
                f"PER_DEVICE_BATCH_SIZE: is auto, and --gradient_accumulation_steps {steps} divides a step already. "
                "Remove one of the two."
            )
        share, rest = divmod(size, num_gpus * num_nodes)
        if rest:
            raise UserError(
                f"BATCH_SIZE={size} cannot be split over GPUS ({gpus}) x NNODES ({nodes}) = {num_gpus * num_nodes} "
                f"processes. Use BATCH_SIZE={(share + 1) * num_gpus * num_nodes}."
            )
        return Batch(size, share, num_gpus, num_nodes, 1, fits_memory=True)
    rows_of_device = check_positive("PER_DEVICE_BATCH_SIZE", per_device, 4)
    rows = rows_of_device * num_gpus * num_nodes
    if steps != AUTO:
        return Batch(num_steps * rows, rows_of_device, num_gpus, num_nodes, num_steps)
    if size % rows == 0:
        return Batch(size, rows_of_device, num_gpus, num_nodes, size // rows)
    # Rounding would train with another batch size than the one asked for, and say nothing.
    lower = size // rows * rows
    advice = f"BATCH_SIZE={lower} or BATCH_SIZE={lower + rows}" if lower else f"BATCH_SIZE={rows}"
    nearest = _nearest_per_device(size, rows_of_device, num_gpus * num_nodes)
    raise UserError(
        f"BATCH_SIZE={size} cannot be split: PER_DEVICE_BATCH_SIZE ({per_device}) x GPUS ({gpus}) x NNODES ({nodes}) "
        f"= {rows} rows per forward pass, and {size} / {rows} is not whole. Use {advice}"
        f"{f', or PER_DEVICE_BATCH_SIZE={nearest}' if nearest else ''}."
    )


def _nearest_per_device(size: int, per_device: int, processes: int) -> int | None:
    """Return the PER_DEVICE_BATCH_SIZE next to ``per_device`` that splits ``size``; of two the one of less memory.

    None where ``size`` does not even split over the processes.
    """
    if size % processes:
        return None
    share = size // processes
    nearest = min(per_device, share)
    around = (number for distance in range(nearest) for number in (nearest - distance, nearest + distance))
    return next(number for number in around if share % number == 0)
