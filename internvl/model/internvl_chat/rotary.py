"""Rotary positions (arXiv:2104.09864) with the scalings that published InternLM2 configurations use.

Axis letters: B batch, N tokens, D head width.
"""

import torch

from .configuration_internlm2 import InternLM2Config


def rotary_cos_sin(
    config: InternLM2Config, position_ids: torch.Tensor, total_length: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rotary cosines and sines, each (B, N, D).

    ``linear`` scaling divides positions by its factor. ``dynamic`` scaling (NTK-aware) enlarges the base once there
    are more tokens than ``max_position_embeddings``. Nothing is kept between calls: a result never depends on an
    earlier, longer one.

    Args:
        config: ``rope_parameters`` has the base and the scaling.
        position_ids: int64 (B, N).
        total_length: the tokens of this call with the cached ones.
        dtype: of the result; angles are computed in float32.
    """
    rope = config.rope_parameters
    width = config.hidden_size // config.num_attention_heads
    base, limit = rope["rope_theta"], config.max_position_embeddings
    positions = position_ids[..., None].float()
    if rope["rope_type"] == "linear":
        positions = positions / rope["factor"]
    elif rope["rope_type"] == "dynamic" and total_length > limit:
        factor = rope["factor"]
        base = base * (factor * total_length / limit - (factor - 1)) ** (width / (width - 2))
    exponents = torch.arange(0, width, 2, dtype=torch.float, device=position_ids.device) / width
    angles = positions * (1.0 / base**exponents)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate_half(states: torch.Tensor) -> torch.Tensor:
    """Return (…, D) with its halves a, b as -b, a: what the sines multiply."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)
