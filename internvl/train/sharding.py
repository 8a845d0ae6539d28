"""Weights divided over processes by DeepSpeed or FSDP2, where transformers' way of handling them fails here."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)

from internvl.model.internvl_chat.causal_lm import IGNORE_INDEX, LOSS_CHUNK
from internvl.model.internvl_chat.modeling_internvl_chat import VISION_BATCH
from internvl.train.arguments import FinetuneArguments

FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # of torch.load, whatever its caller asks for


def shards_parameters(training_args: FinetuneArguments) -> bool:
    """Return whether no process of a training has all weights."""
    return bool(training_args.fsdp) or is_deepspeed_zero3_enabled()


def equal_calls(labels: torch.Tensor, pixel_values: torch.Tensor | None) -> dict[str, int]:
    """Return how often the model is to run its vision encoder and its output layer: on every rank equally often.

    Each run of a sharded module gathers its weights from all ranks, which wait for each other. How many runs a
    micro-batch needs depends on its tiles and supervised tokens: the largest number of all ranks is taken.

    Args:
        labels: int64 (B, N).
        pixel_values: (T, 3, S, S), or None.
    """
    num_supervised = int((labels[:, 1:] != IGNORE_INDEX).sum())
    num_tiles = 0 if pixel_values is None else len(pixel_values)
    needed = [max(1, -(-num_tiles // VISION_BATCH)), max(1, -(-num_supervised // LOSS_CHUNK))]
    counts = torch.tensor(needed, device=labels.device)
    if distributed.is_initialized():
        distributed.all_reduce(counts, distributed.ReduceOp.MAX)
    num_vision_calls, num_loss_chunks = counts.tolist()
    return {"num_vision_calls": num_vision_calls, "num_loss_chunks": num_loss_chunks}


@contextmanager
def zero3_init_disabled(training_args: FinetuneArguments) -> Iterator[None]:
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


@contextmanager
def weights_only_checkpoints() -> Iterator[None]:
    """Let DeepSpeed read checkpoints in the block without unpickling whatever a file holds.

    It gets tensors, plain values and its own records; of anything else torch raises ``pickle.UnpicklingError``.
    """
    # Imported here: a training without DeepSpeed need not wait for it.
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get(FORCED)
    os.environ[FORCED] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        if before is None:
            del os.environ[FORCED]
        else:
            os.environ[FORCED] = before
