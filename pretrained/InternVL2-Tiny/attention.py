"""Attention shared by the vision encoder and the language model.

Axis letters: B batch, N query length, M key length, H query heads, G key/value heads, D head width.
"""

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute attention with plain matrix products, softmax in float32: the form every other kernel must agree with.

    ``query`` is (B, H, N, D); ``key`` and ``value`` are (B, G, M, D) with G dividing H; ``attention_mask`` is
    additive and broadcasts to (B, H, N, M). Returns the output (B, N, H, D) and the weights (B, H, N, M).
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    weights = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run the attention kernel that ``module.config`` names (eager, sdpa, flash_attention_2, flex_attention).

    Shapes as in :func:`eager_attention`. ``module.is_causal`` says whether a missing mask means causal.
    """
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager_attention)
    return kernel(
        module,
        query,
        key,
        value,
        attention_mask,
        scaling=query.shape[-1] ** -0.5,
        dropout=dropout if module.training else 0.0,
        **kwargs,
    )
