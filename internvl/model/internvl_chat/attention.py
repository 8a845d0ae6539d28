"""Attention of the vision encoder and the language model: which tokens see which, and the kernel that computes it.

Written out rather than taken from transformers, whose masks and kernel calls have changed in most of its releases.

Axis letters: B batch, N query length, M key length, H query heads, G key/value heads, D head width.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def causal_mask(
    attention_mask: torch.Tensor | None, num_new: int, num_cached: int, device: torch.device
) -> torch.Tensor | None:
    """Return which keys each new token attends to, bool (B or 1, 1, N, M); None where plain causal attention says it.

    Args:
        attention_mask: (B, M), 1 where a token is and 0 where padding is; None for no padding. One of four axes is
            returned as it is.
        num_new: N, the tokens of this call.
        num_cached: the tokens before them, so that M is their sum.
        device: where the mask is needed.

    A token always attends to itself, padding too: a row without any key has no softmax, and its NaN would spread.
    """
    if attention_mask is not None and attention_mask.dim() == 4:
        return attention_mask
    padded = attention_mask is not None and not bool(attention_mask.all())
    total = num_cached + num_new
    if not padded and num_new in (1, total):
        return None
    queries, keys = torch.arange(num_cached, total, device=device)[:, None], torch.arange(total, device=device)
    visible = keys <= queries
    if padded:
        return visible & attention_mask[:, None, None, :].bool() | (keys == queries)
    return visible[None, None]


def repeat_heads(states: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Repeat grouped key or value heads, (B, G, M, D), for the query heads that share them: (B, H, M, D)."""
    return states.repeat_interleave(query.shape[1] // states.shape[1], dim=1)


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute attention with plain matrix products, softmax in float32: the form every other kernel must agree with.

    Args:
        module: ``is_causal`` says whether a missing mask means causal.
        query: (B, H, N, D).
        key: (B, G, M, D) with G dividing H.
        value: as ``key``.
        mask: bool, True where a query attends, or additive; broadcasts to (B, H, N, M).
        dropout: probability of dropping a weight, in training.

    Returns:
        The output (B, N, H, D) and the weights (B, H, N, M).
    """
    key, value = repeat_heads(key, query), repeat_heads(value, query)
    weights = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    if mask is None and module.is_causal and query.shape[2] > 1:
        mask = torch.ones(weights.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        weights = weights.masked_fill(~mask, torch.finfo(weights.dtype).min)
    elif mask is not None:
        weights = weights + mask
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def sdpa_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, None]:
    """Compute attention with PyTorch's fused kernels, which give no weights.

    Args:
        module: as of :func:`eager_attention`, like all others.
        query: (B, H, N, D).
        key: (B, G, M, D).
        value: as ``key``.
        mask: bool or additive, or None.
        dropout: probability of dropping a weight.
    """
    grouped = mask is None  # no kernel takes a mask and grouped heads at once
    if not grouped:
        key, value = repeat_heads(key, query), repeat_heads(value, query)
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None and module.is_causal and query.shape[2] > 1,
        enable_gqa=grouped and key.shape[1] != query.shape[1],
    )
    return output.transpose(1, 2).contiguous(), None


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run the attention kernel that ``module.config`` names: eager, sdpa, or one of the flash attentions.

    Args:
        module: the attention layer.
        query: as of :func:`eager_attention`, like the others; so is the result.
        key: (B, G, M, D).
        value: as ``key``.
        mask: for flash attention the (B, M) mask of padding instead.
        dropout: probability of dropping a weight, in training.
    """
    dropout = dropout if module.training else 0.0
    name = module.config._attn_implementation or "sdpa"
    own = {"eager": eager_attention, "sdpa": sdpa_attention}
    if name in own:
        return own[name](module, query, key, value, mask, dropout)
    kernel = ALL_ATTENTION_FUNCTIONS[name]
    return kernel(module, query, key, value, mask, dropout=dropout, scaling=query.shape[-1] ** -0.5)
