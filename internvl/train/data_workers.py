"""What data workers need of the machine, shared memory and open files, and what happens where there is too little."""

import errno
import logging
import multiprocessing.queues
import os
import re
import resource
import shutil
from pathlib import Path
from typing import Protocol

from internvl.errors import UserError

# What multiprocessing calls when a worker cannot hand over an object.
ON_LOST_BATCH = "_on_queue_feeder_error"

logger = logging.getLogger(__name__)
SHARED_MEMORY = Path("/dev/shm")
# Of the free shared memory; the rest is for other processes and for batches larger than planned.
USABLE_SHARE = 0.8
# Open files that a training has besides: libraries, log, checkpoints, sockets of the processes.
OTHER_FILES = 128
PREFETCH = 2  # torch's own default
WAYS_ON = (
    "Give the container more shared memory (docker run --shm-size 8g), allow more open files (ulimit -n 65536), or "
    "pass --dataloader_num_workers 0"
)


class WorkerSettings(Protocol):
    """The settings of a training that decide how many batches wait at once."""

    dataloader_num_workers: int
    dataloader_prefetch_factor: int | None
    dataloader_persistent_workers: bool


def fit_workers(
    settings: WorkerSettings, *, batch_bytes: int, batch_tensors: int, processes: int = 1, free: int | None = None
) -> None:
    """Lower prefetching, then workers, until the batches that wait fit the machine; a line says so.

    A tensor that a worker hands over lies in shared memory and is an open file until the batch is used. Without room,
    a worker's batch never arrives and the training would wait for ever.

    Args:
        settings: what is lowered.
        batch_bytes: of the largest batch.
        batch_tensors: of the largest batch.
        processes: of this machine, which share the memory.
        free: bytes of shared memory; by default what is free now.
    """
    wanted = settings.dataloader_num_workers, settings.dataloader_prefetch_factor or PREFETCH
    if not wanted[0]:
        return
    if free is None:
        free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 1 << 62
    waiting = min(
        int(free * USABLE_SHARE / processes // max(1, batch_bytes)),
        (allow_open_files() - OTHER_FILES) // max(1, batch_tensors),
    )
    waiting -= 1  # the one that is being trained on
    workers, prefetch = wanted
    while workers and workers * prefetch > waiting:
        workers, prefetch = (workers, prefetch - 1) if prefetch > 1 else (workers - 1, prefetch)
    if (workers, prefetch) == wanted:
        return
    settings.dataloader_num_workers = workers
    settings.dataloader_prefetch_factor = prefetch if workers else None
    settings.dataloader_persistent_workers &= workers > 0
    logger.warning(
        "Data workers: %d with %d batches each instead of %d with %d, because a batch of up to %.1f MB in %d tensors "
        "does not fit more often into %.0f MB of shared memory and %d open files. %s for full speed.",
        *(workers, prefetch if workers else 0, *wanted, batch_bytes / 1e6, batch_tensors, free / 1e6),
        allow_open_files(),
        WAYS_ON.partition(", or ")[0],
    )


def allow_open_files() -> int:
    """Raise the number of files this process may open to what its user may have, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and hard != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if limit == resource.RLIM_INFINITY else limit


def end_on_lost_batch(worker: int) -> None:
    """Make a data worker end when it cannot hand over a batch; the ``worker_init_fn`` of a DataLoader.

    By default multiprocessing prints a traceback and goes on, and the training waits for the batch for ever.
    """

    def end(error: Exception, batch: object) -> None:
        os._exit(getattr(error, "errno", None) or _errno_in(str(error)) or 1)

    setattr(multiprocessing.queues.Queue, ON_LOST_BATCH, staticmethod(end))


def _errno_in(message: str) -> int:
    """Return the error number at the end of a message of torch, like ``… No space left on device (28)``; 0 without."""
    found = re.search(r"\((\d+)\)\s*$", message)
    return int(found[1]) if found else 0


def raise_lost_batch(error: RuntimeError) -> None:
    """Raise what a DataLoader says of a dead worker as one sentence; return if ``error`` is about something else.

    Raises:
        UserError: names the reason and the ways on.
    """
    text = " ".join(str(part) for part in (error, error.__cause__, error.__context__))
    if "DataLoader worker" not in text or "caught" in text.lower():
        return
    code = re.search(r"exit code (\d+)", text)
    if "Bus error" in text:
        reason = "shared memory is full"
    elif code and int(code[1]) in (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        reason = os.strerror(int(code[1])).lower()
    else:
        reason = "it ended; the machine's memory may be full"
    raise UserError(
        f"--dataloader_num_workers: a data worker could not hand over its batch ({reason}). {WAYS_ON}."
    ) from error
