"""Tiny members of the family with random weights, for the tests of several modules."""

from pathlib import Path

import torch
from torch import nn

LLMS = ("internlm2", "qwen2", "qwen3")
QWEN = LLMS[1:]
FROZEN = {"freeze_llm": True, "freeze_backbone": True, "freeze_mlp": True}


def save_tiny_member(llm: str, rows_folder: Path, out: Path) -> Path:
    """Write a member with random weights, 56 px tiles of 4 tokens, and a tokenizer of its own kind; return ``out``."""
    from make_tiny_base import make_tiny_base

    corpus = [rows_folder / "train.jsonl"]
    make_tiny_base(out, corpus, llm=llm, vocab_size=400, image_size=56, patch_size=14, width=64, layers=2)
    return out


def randomize_lora(model: nn.Module, scale: float = 0.1, seed: int = 3) -> None:
    """Fill all LoRA weights of a model with normal values, since B starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
