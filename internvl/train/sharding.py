"""Weights divided over processes by DeepSpeed or FSDP2, where transformers' way of handling them fails here."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import Trainer
from transformers.integrations.deepspeed import (
    deepspeed_load_checkpoint,
    is_deepspeed_zero3_enabled,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)
from transformers.trainer import SCHEDULER_NAME

from internvl.train.arguments import FinetuneArguments

FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # of torch.load, whatever its caller asks for


def divides_weights(training_args: FinetuneArguments) -> bool:
    """Return whether no process of a training has all weights."""
    return bool(training_args.fsdp) or is_deepspeed_zero3_enabled()


@contextmanager
def undivided_weights(training_args: FinetuneArguments) -> Iterator[None]:
    """Let a model that is loaded in the block have all its weights on every process, also for ZeRO-3.

    transformers would divide them while it reads; LoRA and the tiles' positions are made from whole ones. DeepSpeed
    divides them when the training starts.
    """
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if training_args.deepspeed:
            set_hf_deepspeed_config(training_args.hf_deepspeed_config)


def load_zero_checkpoint(engine: torch.nn.Module, folder: str | Path) -> None:
    """Load weights, optimizer and schedule of a DeepSpeed engine from a checkpoint of trained weights.

    DeepSpeed would unpickle whatever a file holds; here it gets tensors, plain values and its own records.

    Raises:
        pickle.UnpicklingError: a file holds anything else.
    """
    # Imported here: a training without DeepSpeed need not wait for it.
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get(FORCED)
    os.environ[FORCED] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
            # Not strict: frozen weights are in the base, and DeepSpeed would ask for them, too.
            deepspeed_load_checkpoint(engine, str(folder), load_module_strict=False)
    finally:
        if before is None:
            del os.environ[FORCED]
        else:
            os.environ[FORCED] = before


def save_fsdp_checkpoint(trainer: Trainer, folder: str) -> None:
    """Write optimizer and schedule of an FSDP training with LoRA: what trains of the model is in the adapter."""
    # Imported here: accelerate has it only where torch can divide weights.
    from accelerate.utils import save_fsdp_optimizer

    accelerator = trainer.accelerator
    save_fsdp_optimizer(accelerator.state.fsdp_plugin, accelerator, trainer.optimizer, trainer.model, folder)
    if trainer.args.should_save:
        torch.save(trainer.lr_scheduler.state_dict(), Path(folder) / SCHEDULER_NAME)
