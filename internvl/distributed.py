"""The ranks of a run: which one this process is (as torchrun says, and nobody else), and what they tell each other.

Collectives do nothing in a process that works alone. torch is imported inside them: a command that only asks for its
rank need not wait for it.
"""

import logging
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

logger = logging.getLogger(__name__)
SET_BY_TORCHRUN = "TORCHELASTIC_RUN_ID"
COMPILED_REDUCTION = "deepspeed_shm_comm"  # in DeepSpeed's table of what can be compiled here
LONGEST_WAIT = timedelta(hours=12)
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's number and how many there are: (0, 1) unless torchrun started several."""
    if SET_BY_TORCHRUN not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def leave_out_compiled_reduction() -> None:
    """Make DeepSpeed reduce with gloo alone on CPUs; does nothing where it is not installed.

    Its own reduction through shared memory is compiled at the first start, for a minute and a half in which nothing is
    said, and waits for ever behind the lock of a process that was killed meanwhile.
    """
    try:
        import deepspeed
    except ImportError:
        return
    deepspeed.ops.__compatible_ops__[COMPILED_REDUCTION] = False


def join_ranks() -> bool:
    """Join the other ranks if torchrun started several; return whether this is the first.

    Only objects travel between them (gloo). They wait for the first one's scoring, which can take an hour (SPICE).
    """
    if rank_and_world_size()[1] > 1:
        import torch
        from torch import distributed

        distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return is_main_process()


def leave_ranks() -> None:
    """Part from the other ranks: or the threads of the group may outlive what they use, and abort the process."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def count_cores() -> int:
    """Return how many cores this process may use: fewer than the machine has in a container or a batch job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_main_process() -> bool:
    """Whether this is the first process, which speaks and writes for all."""
    return rank_and_world_size()[0] == 0


def ignore_foreign_ranks() -> None:
    """Remove from the environment the rank variables that torchrun did not set.

    Training operators set them for a whole pod, and libraries that read them would wait for processes that never
    come. Several processes started in another way would each think itself alone, so that is said.
    """
    if SET_BY_TORCHRUN in os.environ:
        return
    found = {name: os.environ.pop(name) for name in RANK_VARIABLES if name in os.environ}
    if found.get("WORLD_SIZE", "") not in ("", "0", "1"):
        logger.warning(
            "RANK=%s WORLD_SIZE=%s of the environment are not torchrun's and not used: this process works alone.",
            found.get("RANK", ""),
            found["WORLD_SIZE"],
        )


def shard(items: Sequence[T], rank: int, world_size: int) -> Sequence[T]:
    """Return one rank's items, every ``world_size``-th, so that of a sorted list all ranks have as many long ones."""
    return items[rank::world_size]


def barrier() -> None:
    """Wait for all ranks."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()


def all_ranks(condition: "torch.Tensor") -> bool:
    """Return whether ``condition``, a bool scalar on the rank's own device, holds on every rank."""
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        return bool(condition)
    agreed = condition.to(torch.int32)
    distributed.all_reduce(agreed, distributed.ReduceOp.MIN)
    return bool(agreed)


def gather_lists(own: list[T]) -> list[T]:
    """Return the lists of all ranks as one, in the order of the ranks."""
    from torch import distributed

    if not distributed.is_initialized():
        return own
    lists: list[list[T] | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(lists, own)
    return [entry for part in lists for entry in part or []]


def broadcast_from_rank0(make: Callable[[], T]) -> T:
    """Return on every rank what ``make`` returns on rank 0, the only one that calls it."""
    from torch import distributed

    if not distributed.is_initialized():
        return make()
    values = [make() if is_main_process() else None]
    distributed.broadcast_object_list(values)
    return cast(T, values[0])
