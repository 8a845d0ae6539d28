"""Signals and silence during a training: it stops with a checkpoint, and says which process the others wait for."""

import logging
import os
import signal
import threading
import time
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback

logger = logging.getLogger(__name__)
# A batch system's warning before it takes the machine (Slurm: --signal=USR1@300) is answered as a request to stop is.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Slurm and a terminal signal every process, and the launcher and torchrun pass theirs on: one request arrives as
# several signals, all within this time.
SAME_SECONDS = 5.0
# Of the longest wait, when to say who is waited for.
SPEAK_AFTER = 0.9


class StopOnSignal(TrainerCallback):
    """Stops a training after the step in which a signal came, on whichever process, with a checkpoint.

    ``caught`` is the signal's number then, else 0. Another one after ``SAME_SECONDS`` ends the process at once.
    """

    def __init__(self):
        self.caught = 0  # what every process has agreed on
        self._noted = 0  # what this process has received: a signal may come at any moment, also while they agree
        self._first: float | None = None  # when this process got one
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame) -> None:
        if self._first is None:
            self._first = time.monotonic()
        elif time.monotonic() - self._first > SAME_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._noted = number

    def on_step_end(self, args, state, control, **kwargs):
        self.caught = self._noted
        if distributed.is_initialized():
            # One process may have had it a step earlier than another, or alone: all stop after the same step.
            numbers = torch.tensor(self.caught, device=args.device)
            distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
            self.caught = int(numbers)
        if self.caught and state.global_step < state.max_steps:
            logger.warning(
                "%s: saving checkpoint-%d, then stopping.", signal.Signals(self.caught).name, state.global_step
            )
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if state.global_step >= state.max_steps:
            self.caught = 0  # it came in the last step: the training is whole


def limit_waiting(seconds: int) -> None:
    """Make every wait for another process end in an error after so long, on a CPU, too.

    transformers sets the limit where processes are started for GPUs; on a CPU torch's own half an hour stays.
    """
    if distributed.is_initialized() and hasattr(distributed, "set_timeout"):  # torch 2.12 and newer
        distributed.set_timeout(timedelta(seconds=seconds))


class Heartbeat(TrainerCallback):
    """Leaves word, where the other ranks can read it, of how far this one has come, and says who is behind.

    A collective that waits too long ends in an error on a CPU; NCCL's watchdog ends the process without one. So a
    thread says which rank the others wait for shortly before that. ``limit`` is in seconds, None for the training's
    ``ddp_timeout``.
    """

    def __init__(self, limit: float | None = None):
        self.limit = limit
        self.batches = 0
        self._last = time.monotonic()
        self._ended = threading.Event()

    def on_train_begin(self, args, state, control, **kwargs):
        if distributed.is_initialized():
            limit = self.limit or args.ddp_timeout
            threading.Thread(target=self._watch, args=(limit,), daemon=True, name="stragglers").start()

    def on_train_end(self, args, state, control, **kwargs):
        self._ended.set()

    def _watch(self, limit: float) -> None:
        told = None
        while not self._ended.wait(limit / 50):
            silent = time.monotonic() - self._last
            if silent > limit * SPEAK_AFTER and told != self._last:
                told = self._last
                if behind := describe_stragglers():
                    logger.error("No step in %d s: %s.", silent, behind)

    def on_step_begin(self, args, state, control, **kwargs):
        self.batches = 0
        self._beat(state)

    def on_substep_end(self, args, state, control, **kwargs):
        self.batches += 1
        self._beat(state)

    def on_step_end(self, args, state, control, **kwargs):
        self.batches = 0
        self._beat(state)

    def _beat(self, state) -> None:
        self._last = time.monotonic()
        if distributed.is_initialized():
            progress = f"{state.global_step} {self.batches}"
            distributed.distributed_c10d._get_default_store().set(f"progress/{distributed.get_rank()}", progress)


def describe_stragglers() -> str:
    """Return which processes are behind, like ``process 1 is behind (step 3, micro-batch 1)``; empty if none is."""
    store = distributed.distributed_c10d._get_default_store()
    keys = {rank: f"progress/{rank}" for rank in range(distributed.get_world_size())}
    progress = {
        rank: tuple(map(int, store.get(key).split())) if store.check([key]) else (-1, 0) for rank, key in keys.items()
    }
    most = max(progress.values())
    return ", ".join(
        f"process {rank} is behind (step {step + 1}, micro-batch {batch + 1})"
        for rank, (step, batch) in progress.items()
        if (step, batch) < most
    )
