"""Qwen2 and Qwen3 as language models: transformers' own decoders, with this folder's attention and loss.

Their masks and kernels are named by the configuration: here by names of this folder, registered with transformers, so
that rows that share an image stay apart and every version of transformers computes the same.

Axis letters: B batch, N new tokens, M all tokens (with the cached ones), H query heads, G key/value heads, D head
width.
"""

import torch
from torch import nn
from transformers import Qwen2ForCausalLM, Qwen3ForCausalLM
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention import causal_mask, eager_attention, sdpa_attention
from .causal_lm import SupervisedCausalLM
from .compat import CACHE_NAME, open_cache
from .sequence_layout import SequenceLayout, attend_in_groups

KERNELS = {"eager": eager_attention, "sdpa": sdpa_attention}
PREFIX = "internvl_"


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    layout: SequenceLayout | None = None,
    total_length: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute attention as transformers' attention interface asks for it.

    Args:
        module: the attention layer; its configuration names the kernel.
        query: (B, H, N, D).
        key: (B, G, M, D).
        value: as ``key``.
        attention_mask: bool (B or 1, 1, N, M), or None for plain causal attention.
        dropout: probability of dropping a weight.
        layout: the groups of a packed sequence, instead of a mask.
        total_length: M without the slots of a cache of fixed size that hold nothing yet.
        kwargs: what transformers' versions pass besides, of which this needs nothing.

    Returns:
        The output (B, N, H, D) and the weights (B, H, N, M), None where the kernel gives none.
    """
    if layout is not None:
        return attend_in_groups(query, key, value, layout), None
    if total_length is not None:
        key, value = key[:, :, :total_length], value[:, :, :total_length]
    kernel = KERNELS[module.config._attn_implementation.removeprefix(PREFIX)]
    return kernel(module, query, key, value, attention_mask, dropout)


for name in KERNELS:
    ALL_ATTENTION_FUNCTIONS.register(PREFIX + name, attend)


class LibraryCausalLM(SupervisedCausalLM):
    """A causal language model of transformers, with what every language model of this folder takes."""

    def run_decoder(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        layout: SequenceLayout | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Run the decoder on ``input_ids`` int64 (B, N) or ``inputs_embeds`` (B, N, C).

        Args:
            input_ids: int64 (B, N).
            attention_mask: (B, M), 1 where a token is, or a prepared (B, 1, N, M) mask.
            position_ids: int64 (B, N); without it positions count on from the cache.
            past_key_values: the cache, up to transformers 5.23.
            inputs_embeds: (B, N, C), instead of ``input_ids``.
            use_cache: whether to keep one.
            layout: how packed rows lie in one sequence (B = 1), with neither attention_mask nor cache.
            cache: the cache, from transformers 5.24 on.
            kwargs: other arguments of the decoder.

        Raises:
            ValueError: a layout with flash attention, which would take no notice of it.
        """
        kernel = self.config._attn_implementation or "sdpa"
        if kernel in KERNELS:
            kernel = self.config._attn_implementation = PREFIX + kernel
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        cache = past_key_values if past_key_values is not None else cache
        cache, use_cache, num_cached = open_cache(self.config, cache, use_cache, self.training)
        num_new, device = inputs_embeds.shape[1], inputs_embeds.device
        if not kernel.startswith(PREFIX):
            if layout is not None:
                raise ValueError(f"Packed rows need the attention sdpa or eager, and the model has {kernel}.")
            mask = attention_mask
        else:
            kwargs["total_length"] = num_cached + num_new
            if layout is not None:
                kwargs |= {"layout": layout}
                mask, position_ids = None, layout.position_ids(device)
            else:
                mask = causal_mask(attention_mask, num_new, num_cached, device)
            # A mapping is taken as it is: the decoder makes no mask of its own.
            mask = {"full_attention": mask, "sliding_attention": mask}
        if position_ids is None:
            position_ids = torch.arange(num_cached, num_cached + num_new, device=device)[None]
        return self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **{CACHE_NAME: cache},
            **kwargs,
        )


class InternVLQwen2ForCausalLM(LibraryCausalLM, Qwen2ForCausalLM):
    """Qwen2 (arXiv:2407.10671) and Qwen2.5."""


class InternVLQwen3ForCausalLM(LibraryCausalLM, Qwen3ForCausalLM):
    """Qwen3 (arXiv:2505.09388)."""
