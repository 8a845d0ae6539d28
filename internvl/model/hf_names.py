"""The names of transformers' own InternVL classes for the published ones, and the rows of its joint matrices.

InternViT and the projector are there under other names; InternLM2 is a Llama whose query, key and value weights lie in
one matrix (arXiv:2403.17297, section 2.2).
"""

import re

import torch

from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.language_models import language_model_of

# Published module or parameter → transformers' name; # stands for the number of a layer. Several names are the parts
# of one matrix, in the order in which they lie in it.
VIT, HF_VIT = "vision_model.encoder.layers.#", "model.vision_tower.encoder.layer.#"
LLM, HF_LLM = "language_model.model.layers.#", "model.language_model.layers.#"
EMBEDDINGS, HF_EMBEDDINGS = "vision_model.embeddings", "model.vision_tower.embeddings"
NAMES = {
    f"{EMBEDDINGS}.class_embedding": (f"{HF_EMBEDDINGS}.cls_token",),
    f"{EMBEDDINGS}.position_embedding": (f"{HF_EMBEDDINGS}.position_embeddings",),
    f"{EMBEDDINGS}.patch_embedding": (f"{HF_EMBEDDINGS}.patch_embeddings.projection",),
    f"{VIT}.attn.qkv": tuple(f"{HF_VIT}.attention.{part}_proj" for part in "qkv"),
    f"{VIT}.attn.proj": (f"{HF_VIT}.attention.projection_layer",),
    f"{VIT}.attn.q_norm": (f"{HF_VIT}.attention.q_norm",),
    f"{VIT}.attn.k_norm": (f"{HF_VIT}.attention.k_norm",),
    f"{VIT}.mlp.fc1": (f"{HF_VIT}.mlp.fc1",),
    f"{VIT}.mlp.fc2": (f"{HF_VIT}.mlp.fc2",),
    f"{VIT}.norm1": (f"{HF_VIT}.layernorm_before",),
    f"{VIT}.norm2": (f"{HF_VIT}.layernorm_after",),
    f"{VIT}.ls1": (f"{HF_VIT}.lambda_1",),
    f"{VIT}.ls2": (f"{HF_VIT}.lambda_2",),
    "mlp1.0": ("model.multi_modal_projector.layer_norm",),
    "mlp1.1": ("model.multi_modal_projector.linear_1",),
    "mlp1.3": ("model.multi_modal_projector.linear_2",),
    "language_model.model.tok_embeddings": ("model.language_model.embed_tokens",),
    f"{LLM}.attention.wqkv": tuple(f"{HF_LLM}.self_attn.{part}_proj" for part in "qkv"),
    f"{LLM}.attention.wo": (f"{HF_LLM}.self_attn.o_proj",),
    f"{LLM}.feed_forward.w1": (f"{HF_LLM}.mlp.gate_proj",),
    f"{LLM}.feed_forward.w3": (f"{HF_LLM}.mlp.up_proj",),
    f"{LLM}.feed_forward.w2": (f"{HF_LLM}.mlp.down_proj",),
    f"{LLM}.attention_norm": (f"{HF_LLM}.input_layernorm",),
    f"{LLM}.ffn_norm": (f"{HF_LLM}.post_attention_layernorm",),
    "language_model.model.norm": ("model.language_model.norm",),
    "language_model.output": ("lm_head",),
}


def tied_output(config: InternVLChatConfig) -> str | None:
    """Return the published name of the output weight where it is tied to the embeddings, and need not be stored."""
    if not config.llm_config.tie_word_embeddings:
        return None
    return f"language_model.{language_model_of(config.llm_config).output}"


def hf_names(name: str) -> tuple[str, ...]:
    """Return transformers' names of a published tensor: one, or those of its query, key and value part."""
    layer = re.search(r"\.layers\.(\d+)\.", name)
    suffix = next((suffix for suffix in (".weight", ".bias") if name.endswith(suffix)), "")
    module = name.removesuffix(suffix)
    if (key := re.sub(r"\.layers\.\d+\.", ".layers.#.", module)) not in NAMES:
        # Qwen's layers have transformers' names in both layouts.
        inside = name.removeprefix("language_model.")
        return (inside if inside.startswith("lm_head") else f"model.language_model.{inside.removeprefix('model.')}",)
    found = NAMES[key]
    return tuple(part.replace("#", layer[1] if layer else "") + suffix for part in found)


def grouping(name: str, config: InternVLChatConfig) -> tuple[int, int]:
    """Return how query, key and value rows alternate in a joint matrix: (groups, query blocks of a group).

    InternLM2's wqkv repeats [q … q k v] for every key/value head; InternViT's qkv is one group of one block each.
    """
    if name.startswith("vision_model."):
        return 1, 1
    llm = config.llm_config
    return llm.num_key_value_heads, llm.num_attention_heads // llm.num_key_value_heads


def split(name: str, tensor: torch.Tensor, config: InternVLChatConfig) -> list[torch.Tensor]:
    """Return the parts of a published tensor in the order of :func:`hf_names`."""
    if len(hf_names(name)) == 1:
        return [tensor]
    groups, queries = grouping(name, config)
    blocks = tensor.unflatten(0, (groups, queries + 2, -1))
    return [part.flatten(0, 2) for part in blocks.split([queries, 1, 1], dim=1)]


def join(name: str, parts: list[torch.Tensor], config: InternVLChatConfig) -> torch.Tensor:
    """Return the published tensor of which ``parts`` are the parts: the inverse of :func:`split`."""
    if len(parts) == 1:
        return parts[0]
    groups, queries = grouping(name, config)
    blocks = [part.unflatten(0, (groups, num, -1)) for part, num in zip(parts, (queries, 1, 1), strict=True)]
    return torch.cat(blocks, dim=1).flatten(0, 2)
