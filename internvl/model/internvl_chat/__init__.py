"""The code that travels with an InternVL-Chat checkpoint: a closed, flat folder.

Names are imported on first use, so that reading a conversation template does not load torch.
"""

from importlib import import_module

_EXPORTS = {
    "InternVisionConfig": "configuration_intern_vit",
    "InternLM2Config": "configuration_internlm2",
    "InternVLChatConfig": "configuration_internvl_chat",
    "InternVisionModel": "modeling_intern_vit",
    "InternLM2ForCausalLM": "modeling_internlm2",
    "InternVLChatModel": "modeling_internvl_chat",
    "InternVLChatImageProcessor": "image_processing_internvl_chat",
    "InternVLChatProcessor": "processing_internvl_chat",
    "load_image": "image_processing_internvl_chat",
    "load_tokenizer": "tokenization",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
