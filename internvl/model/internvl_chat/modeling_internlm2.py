"""The language model, InternLM2 (arXiv:2403.17297): a Llama-like decoder whose q, k and v share one weight.

Axis letters: B batch, N new tokens, M all tokens (with the cached ones), C channels, H query heads, G key/value
heads, D head width, V vocabulary.
"""

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from .attention import attend, causal_mask
from .causal_lm import SupervisedCausalLM
from .compat import CACHE_NAME, open_cache
from .configuration_internlm2 import InternLM2Config
from .rotary import rotary_cos_sin, rotate_half
from .sequence_layout import SequenceLayout, attend_in_groups


class InternLM2RMSNorm(nn.Module):
    """Root mean square norm, computed in float32 (arXiv:1910.07467)."""

    def __init__(self, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        states = hidden_states.to(torch.float32)
        states = states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * states.to(hidden_states.dtype)


def split_wqkv(
    states: torch.Tensor, num_heads: int, num_key_value_heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split the output of ``wqkv``, (B, N, (H + 2G)·D), into q (B, H, N, D) and k, v (B, G, N, D).

    The weight is grouped by key/value head: H/G queries, then the key, then the value they share, G times over.
    """
    per_group = num_heads // num_key_value_heads
    grouped = states.unflatten(-1, (num_key_value_heads, per_group + 2, -1))
    query, key, value = grouped.split([per_group, 1, 1], dim=-2)
    return tuple(part.flatten(2, 3).transpose(1, 2) for part in (query, key, value))


class InternLM2Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    is_causal = True

    def __init__(self, config: InternLM2Config, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        if config.hidden_size % heads or heads % groups:
            raise ValueError(
                f"llm_config: hidden_size {config.hidden_size}, num_attention_heads {heads} and "
                f"num_key_value_heads {groups} must each be a multiple of the next."
            )
        self.head_dim = config.hidden_size // heads
        self.num_key_value_groups = heads // groups
        self.wqkv = nn.Linear(config.hidden_size, (heads + 2 * groups) * self.head_dim, bias=config.bias)
        self.wo = nn.Linear(config.hidden_size, config.hidden_size, bias=config.bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        layout: SequenceLayout | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, N, C) → (B, N, C) and the attention weights, when the kernel gives them.

        Args:
            hidden_states: (B, N, C).
            position_embeddings: cosines and sines, each (B, N, D).
            mask: bool or additive, (B or 1, 1, N, M); None for plain causal attention.
            past_key_values: keys and values of the positions before, to which these are added.
            layout: the groups of a packed sequence, instead of a mask.
        """
        query, key, value = split_wqkv(
            self.wqkv(hidden_states), self.config.num_attention_heads, self.config.num_key_value_heads
        )
        cos, sin = (part.unsqueeze(1) for part in position_embeddings)
        query = query * cos + rotate_half(query) * sin
        key = key * cos + rotate_half(key) * sin
        if past_key_values is not None:
            total_length = past_key_values.get_seq_length(self.layer_idx) + query.shape[2]
            key, value = past_key_values.update(key, value, self.layer_idx)
            # A cache of fixed size gives all its slots; those behind the last token hold nothing yet.
            key, value = key[:, :, :total_length], value[:, :, :total_length]
        if layout is not None:
            output, weights = attend_in_groups(query, key, value, layout), None
        else:
            output, weights = attend(self, query, key, value, mask)
        return self.wo(output.flatten(2)), weights


class InternLM2MLP(nn.Module):
    """Gated perceptron: w2(act(w1 x) · w3 x)."""

    def __init__(self, config: InternLM2Config):
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.w2(self.act_fn(self.w1(hidden_states)) * self.w3(hidden_states))


class InternLM2DecoderLayer(GradientCheckpointingLayer):
    """Pre-norm block: attention, then the gated perceptron."""

    def __init__(self, config: InternLM2Config, layer_idx: int):
        super().__init__()
        self.attention = InternLM2Attention(config, layer_idx)
        self.feed_forward = InternLM2MLP(config)
        self.attention_norm = InternLM2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.ffn_norm = InternLM2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, N, C) → (B, N, C) and the attention weights, when the kernel gives them."""
        attended, weights = self.attention(self.attention_norm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.feed_forward(self.ffn_norm(hidden_states)), weights


class InternLM2PreTrainedModel(PreTrainedModel):
    """What transformers needs to know about either InternLM2 class."""

    config_class = InternLM2Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["InternLM2DecoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _supports_flash_attn = True


class InternLM2Model(InternLM2PreTrainedModel):
    """The decoder stack without the output layer."""

    def __init__(self, config: InternLM2Config):
        super().__init__(config)
        # No padding_idx: padding is masked by position, and the pad id (2) is `</s>`, a token with a meaning.
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(InternLM2DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = InternLM2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.tok_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.tok_embeddings = value

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        layout: SequenceLayout | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: int64 (B, N).
            attention_mask: (B, M), 1 where a token is, or a prepared (B, 1, N, M) mask.
            position_ids: int64 (B, N); without it positions count on from the cache.
            past_key_values: the cache, up to transformers 5.23.
            inputs_embeds: (B, N, C), instead of ``input_ids``.
            use_cache: whether to keep one.
            output_hidden_states: also return the states of all layers.
            output_attentions: also return the attention weights.
            layout: how packed rows lie in one sequence (B = 1), with neither attention_mask nor cache.
            cache: the cache, from transformers 5.24 on.
            kwargs: what transformers' versions pass besides, of which this needs nothing.

        Raises:
            ValueError: both or neither of ``input_ids`` and ``inputs_embeds`` are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.tok_embeddings(input_ids)
        cache = past_key_values if past_key_values is not None else cache
        past_key_values, use_cache, num_cached = open_cache(self.config, cache, use_cache, self.training)
        num_new = inputs_embeds.shape[1]
        device, total_length = inputs_embeds.device, num_cached + num_new
        if layout is not None:
            position_ids, total_length, mask = layout.position_ids(device), layout.longest, None
        else:
            if position_ids is None:
                position_ids = torch.arange(num_cached, total_length, device=device)[None]
            mask = attention_mask
            if self.config._attn_implementation in (None, "eager", "sdpa"):
                mask = causal_mask(attention_mask, num_new, num_cached, device)
        position_embeddings = rotary_cos_sin(self.config, position_ids, total_length, inputs_embeds.dtype)
        hidden_states, all_states, all_weights = inputs_embeds, [], []
        for layer in self.layers:
            all_states.append(hidden_states)
            hidden_states, weights = layer(
                hidden_states,
                position_embeddings=position_embeddings,
                mask=mask,
                past_key_values=past_key_values,
                layout=layout,
            )
            all_weights.append(weights)
        hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_states,
            hidden_states=(*all_states, hidden_states) if output_hidden_states else None,
            attentions=tuple(all_weights) if output_attentions else None,
            **{CACHE_NAME: past_key_values if use_cache else None},
        )


class InternLM2ForCausalLM(SupervisedCausalLM, InternLM2PreTrainedModel, GenerationMixin):
    """InternLM2 with its output layer: logits, loss and text generation."""

    # Only in force when config.tie_word_embeddings says so; no published checkpoint does.
    _tied_weights_keys = {"output.weight": "model.tok_embeddings.weight"}

    def __init__(self, config: InternLM2Config):
        super().__init__(config)
        self.model = InternLM2Model(config)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.tok_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.tok_embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        return self.output

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.output = value
