"""A finetune or a merge in which something goes wrong where told.

    python -m tests.faults.faulty FAULT finetune|reward|merge ARGUMENT…

FAULT is JSON; ``{}`` is none. ``{"batch": N, "signal": S}`` sends the process signal S (SIGKILL without it) before its
N-th micro-batch; ``{"write": N, "below": FOLDER}`` sends SIGKILL the N-th time a file below the folder is opened for
writing, renamed or removed; ``{"nan": N}`` makes the losses of the N-th optimizer step no numbers; ``{"remove": FILE,
"batch": N}`` removes a file before the N-th micro-batch. ``{"fsdp": true}`` is not a fault: accelerate keeps FSDP for
GPUs, and this lets it divide weights over CPUs. Nor is ``{"small_calls": true}``: one tile goes through the vision
encoder at a time, and two positions through the output layer, so that ranks need unequal numbers of calls.
"""

import json
import os
import signal
import sys
from collections.abc import Callable

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from internvl.commands import merge_lora
from internvl.model.internvl_chat import causal_lm, modeling_internvl_chat
from internvl.train import internvl_chat_finetune, internvl_chat_reward, sharding
from internvl.train.trainer import FinetuneTrainer

WRITES = {"os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.mkdir": 0}


def at_batch(number: int, action: Callable[[], None]) -> None:
    """Make this process do something before its ``number``-th micro-batch."""
    step = FinetuneTrainer.training_step
    left = [number]

    def training_step(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            action()
        return step(*args, **kwargs)

    FinetuneTrainer.training_step = training_step


def spoil_loss(step: int) -> None:
    """Make this process's losses of one optimizer step no numbers."""
    compute = FinetuneTrainer.compute_loss

    def compute_loss(trainer, *args, **kwargs):
        loss = compute(trainer, *args, **kwargs)
        return loss * (float("nan") if trainer.state.global_step + 1 == step else 1.0)

    FinetuneTrainer.compute_loss = compute_loss


def die_at_write(number: int, folder: str) -> None:
    """Make this process kill itself when it changes something below ``folder`` for the ``number``-th time."""
    left = [number]

    def note(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        elif event in WRITES:
            path, writes = arguments[WRITES[event]], True
        else:
            return
        if writes and isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(folder):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(note)


def allow_fsdp() -> None:
    """Let accelerate divide weights over CPUs."""
    initialize = AcceleratorState.__init__

    def initialize_with_fsdp(self, *args, fsdp_plugin=None, **kwargs) -> None:
        initialize(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = initialize_with_fsdp


def make_small_calls() -> None:
    """Make a micro-batch of a tiny model take several calls of the vision encoder and of the output layer."""
    for module in (sharding, modeling_internvl_chat):
        module.VISION_BATCH = 1
    for module in (sharding, causal_lm):
        module.LOSS_CHUNK = 2


def prepare(fault: dict) -> None:
    """Make this process go wrong as ``fault`` says."""
    if "fsdp" in fault:
        allow_fsdp()
    if "small_calls" in fault:
        make_small_calls()
    if "nan" in fault:
        spoil_loss(fault["nan"])
    if "remove" in fault:
        at_batch(fault["batch"], lambda: os.unlink(fault["remove"]))
    elif "batch" in fault:
        at_batch(fault["batch"], lambda: os.kill(os.getpid(), fault.get("signal", signal.SIGKILL)))
    elif "write" in fault:
        die_at_write(fault["write"], fault["below"])


if __name__ == "__main__":
    _, described, command, *arguments = sys.argv
    prepare(json.loads(described))
    commands = {"finetune": internvl_chat_finetune.main, "reward": internvl_chat_reward.main, "merge": merge_lora.main}
    commands[command](arguments)
