"""What the tests of tiny members of the family share."""

import torch
from torch import nn

LLMS = ("internlm2", "qwen2", "qwen3")
QWEN = LLMS[1:]
FROZEN = {"freeze_llm": True, "freeze_backbone": True, "freeze_mlp": True}


def randomize_lora(model: nn.Module, scale: float = 0.1, seed: int = 3) -> None:
    """Fill all LoRA weights of a model with normal values, since B starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
