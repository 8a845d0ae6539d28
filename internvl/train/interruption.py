"""Signals during a training: it finishes its step, saves a checkpoint and ends with the status of the signal."""

import logging
import signal

import torch
from torch import distributed
from transformers import TrainerCallback

logger = logging.getLogger(__name__)
# A batch system's warning before it takes the machine (Slurm: --signal=USR1@300) is answered as a request to stop is.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopOnSignal(TrainerCallback):
    """Stops a training after the step in which a signal came, on whichever process, with a checkpoint.

    ``caught`` is the signal's number then, else 0. A second signal of the same kind ends the process at once.
    """

    def __init__(self):
        self.caught = 0
        self._before: dict[int, object] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame) -> None:
        self.caught = number
        signal.signal(number, signal.SIG_DFL)

    def on_step_end(self, args, state, control, **kwargs):
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
