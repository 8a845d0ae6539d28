"""The language model's configuration in transformers' own InternVL layout: which class, and which fields are whose.

InternLM2 is a Llama with other names (arXiv:2403.17297, section 2.2); Qwen2 and Qwen3 have one class in both layouts.
"""

from dataclasses import dataclass

from transformers import LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from internvl.model.internvl_chat.configuration_internvl_chat import llm_architecture

_SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
)
_QWEN2 = (*_SHARED, "attention_dropout", "max_window_layers")
_QWEN3 = (*_QWEN2, "head_dim", "attention_bias")


def _same(names: tuple[str, ...]) -> dict[str, str]:
    """Return a map of names that are the same on both sides."""
    return dict(zip(names, names, strict=True))


@dataclass(frozen=True)
class HfLanguageModel:
    """What a language model is in transformers' layout: ``fields`` maps its published settings to theirs."""

    config_class: type[PretrainedConfig]
    fields: dict[str, str]


HF_LANGUAGE_MODELS = {
    "InternLM2ForCausalLM": HfLanguageModel(LlamaConfig, {**_same(_SHARED), "bias": "attention_bias"}),
    "Qwen2ForCausalLM": HfLanguageModel(Qwen2Config, _same(_QWEN2)),
    "Qwen3ForCausalLM": HfLanguageModel(Qwen3Config, _same(_QWEN3)),
}


def hf_language_model(llm_config: PretrainedConfig) -> HfLanguageModel:
    """Return what transformers' layout has for a checkpoint's language model."""
    return HF_LANGUAGE_MODELS[llm_architecture(llm_config)]


def rope_settings(parameters: dict) -> dict:
    """Return the rotary settings that count, without transformers' second spellings of them."""
    return {key: parameters[key] for key in ("rope_type", "rope_theta", "factor") if key in parameters}


def make_text_config(llm_config: PretrainedConfig) -> PretrainedConfig:
    """Return ``text_config`` for ``llm_config``.

    The padding id is left out: the decoders would give its embedding no gradient, and InternLM2's is ``</s>``, a token
    with a meaning. Generation finds it in ``generation_config.json``.
    """
    theirs = hf_language_model(llm_config)
    rope = rope_settings(llm_config.rope_parameters)
    return theirs.config_class(
        **{new: getattr(llm_config, ours) for ours, new in theirs.fields.items()},
        rope_parameters={**rope, "rope_theta": float(rope["rope_theta"])},
        pad_token_id=None,
    )
