"""The language models that a member of the family may have: classes, the layers LoRA is put on, names of weights."""

from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from .configuration_internvl_chat import llm_architecture
from .modeling_internlm2 import InternLM2DecoderLayer, InternLM2ForCausalLM
from .modeling_qwen import InternVLQwen2ForCausalLM, InternVLQwen3ForCausalLM

# As the original trainer chose them; it has no LoRA for Qwen3, whose layers have Qwen2's names.
_QWEN_TARGETS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj",
)  # fmt: skip


@dataclass(frozen=True)
class LanguageModel:
    """What differs between language models.

    ``lora_targets`` are the ends of the names of the linear layers of a block; ``embeddings`` and ``output`` the
    names of the two weights that may be tied.
    """

    model_class: type[nn.Module]
    layer_class: type[nn.Module]
    lora_targets: tuple[str, ...]
    embeddings: str = "model.embed_tokens.weight"
    output: str = "lm_head.weight"


LANGUAGE_MODELS = {
    "InternLM2ForCausalLM": LanguageModel(
        InternLM2ForCausalLM,
        InternLM2DecoderLayer,
        ("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
        embeddings="model.tok_embeddings.weight",
        output="output.weight",
    ),
    "Qwen2ForCausalLM": LanguageModel(InternVLQwen2ForCausalLM, Qwen2DecoderLayer, _QWEN_TARGETS),
    "Qwen3ForCausalLM": LanguageModel(InternVLQwen3ForCausalLM, Qwen3DecoderLayer, _QWEN_TARGETS),
}


def language_model_of(llm_config: PretrainedConfig) -> LanguageModel:
    """Return what a checkpoint's language model is, by its ``llm_config``."""
    return LANGUAGE_MODELS[llm_architecture(llm_config)]
