"""What a ``config.json`` may say: types and sizes, checked before anything is built of them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from transformers.activations import ACT2FN

from internvl.errors import UserError, shorten
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.conversation import TEMPLATES


class Rule(NamedTuple):
    """Which values a field may have, and how to say so."""

    fits: Callable[[object], bool]
    words: str


def whole(low: int, high: int) -> Rule:
    return Rule(lambda value: type(value) is int and low <= value <= high, f"a whole number from {low:,} to {high:,}")


def number(low: float, high: float) -> Rule:
    return Rule(
        lambda value: type(value) in (int, float) and low <= value <= high, f"a number from {low:g} to {high:g}"
    )


def one_of(*texts: str) -> Rule:
    return Rule(lambda value: isinstance(value, str) and value in texts, f"one of {', '.join(texts)}")


def or_null(rule: Rule) -> Rule:
    return Rule(lambda value: value is None or rule.fits(value), f"{rule.words}, or null")


YES_OR_NO = Rule(lambda value: isinstance(value, bool), "true or false")
OBJECT = Rule(lambda value: isinstance(value, dict), "an object")
ACTIVATION = Rule(lambda value: isinstance(value, str) and value in ACT2FN, "an activation that transformers knows")
# The largest published InternVL has 80 layers of 8,192 channels: many times that is a mistake, not a model, and
# would fill the memory or never be built.
WIDTH, LAYERS, HEADS, SIDE = whole(1, 1 << 16), whole(1, 512), whole(1, 1024), whole(1, 8192)
RANK, TILES, FRACTION, EPSILON = whole(0, 8192), whole(1, 128), number(0, 1), number(0, 0.1)
TOKEN_ID = or_null(whole(0, 1 << 24))
SAME = {
    "dtype": or_null(one_of("float32", "bfloat16", "float16")),
    "torch_dtype": or_null(one_of("float32", "bfloat16", "float16")),
    "num_labels": whole(0, 1000),  # transformers makes a name for each
    "quantization_config": Rule(lambda value: value is None, "null: quantised weights are not read"),
}
CHAT = SAME | {
    "vision_config": or_null(OBJECT),
    "llm_config": or_null(OBJECT),
    "use_backbone_lora": RANK,
    "use_llm_lora": RANK,
    "select_layer": whole(-512, 512),
    "force_image_size": or_null(SIDE),
    "downsample_ratio": number(0.05, 1),
    "template": or_null(one_of(*TEMPLATES)),
    "dynamic_image_size": YES_OR_NO,
    "use_thumbnail": YES_OR_NO,
    "ps_version": one_of("v1", "v2"),
    "min_dynamic_patch": TILES,
    "max_dynamic_patch": TILES,
    "pad2square": YES_OR_NO,
    "tie_word_embeddings": YES_OR_NO,
}
VISION = SAME | {
    "num_channels": whole(3, 3),
    "patch_size": SIDE,
    "image_size": SIDE,
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "intermediate_size": whole(1, 1 << 18),
    "num_hidden_layers": LAYERS,
    "qkv_bias": YES_OR_NO,
    "qk_normalization": YES_OR_NO,
    "hidden_act": ACTIVATION,
    "norm_type": one_of("rms_norm", "layer_norm"),
    "layer_norm_eps": EPSILON,
    "dropout": FRACTION,
    "drop_path_rate": FRACTION,
    "attention_dropout": FRACTION,
    "initializer_range": number(0, 1000),
    "initializer_factor": number(0, 1000),
}
LLM = SAME | {
    "vocab_size": whole(1, 1 << 24),
    "hidden_size": WIDTH,
    "intermediate_size": whole(1, 1 << 18),
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": or_null(HEADS),
    "hidden_act": ACTIVATION,
    "max_position_embeddings": whole(1, 1 << 30),
    "initializer_range": number(0, 1000),
    "rms_norm_eps": EPSILON,
    "use_cache": YES_OR_NO,
    "tie_word_embeddings": YES_OR_NO,
    "bias": YES_OR_NO,
    "pad_token_id": TOKEN_ID,
    "bos_token_id": TOKEN_ID,
    "rope_theta": number(1, 1e12),
    "rope_scaling": or_null(OBJECT),
    "rope_parameters": or_null(OBJECT),
}
# ``type`` is the older name of ``rope_type``.
ROPE = {
    "type": one_of("default", "linear", "dynamic"),
    "rope_type": one_of("default", "linear", "dynamic"),
    "factor": number(1, 1e6),
    "rope_theta": number(1, 1e12),
}


def check_config(content: dict, file: Path) -> None:
    """Refuse a ``config.json`` of the published layout that no model could be built from.

    Raises:
        UserError: names the first field, its value and what it may be.
    """
    check_fields(content, CHAT, f"{file}:")
    vision, llm = content.get("vision_config") or {}, content.get("llm_config") or {}
    check_fields(vision, VISION, f"{file}:vision_config.")
    check_fields(llm, LLM, f"{file}:llm_config.")
    for key in ("rope_scaling", "rope_parameters"):
        check_fields(llm.get(key) or {}, ROPE, f"{file}:llm_config.{key}.")


def check_shapes(config: InternVLChatConfig, file: Path) -> None:
    """Refuse sizes that do not go with one another; those that the file leaves out are the model's defaults.

    Raises:
        UserError: names two of them and their values.
    """
    vision, llm = config.vision_config, config.llm_config
    for part, name, divisor in (
        (vision, "hidden_size", "num_attention_heads"),
        (llm, "hidden_size", "num_attention_heads"),
        (llm, "num_attention_heads", "num_key_value_heads"),
    ):
        value, other = getattr(part, name), getattr(part, divisor)
        if value % other:
            where = f"{file}:{'vision_config' if part is vision else 'llm_config'}.{name}"
            raise UserError(f"{where}: is {value}, no multiple of {divisor} {other}. Restore the file.")
    side, patch, ratio = config.image_size, vision.patch_size, config.downsample_ratio
    folded = side // patch * ratio
    if folded < 1 or not math.isclose(folded, round(folded)):
        name = "force_image_size" if config.force_image_size else "vision_config.image_size"
        raise UserError(
            f"{file}:{name}: is {side} px, which are {side // patch} patches of {patch} px a side, and "
            f"downsample_ratio {ratio} of them is not a whole number. Restore the file."
        )


def check_fields(content: dict, rules: dict[str, Rule], where: str) -> None:
    """Refuse a value that its rule does not allow; fields without a rule are transformers' own."""
    for name, rule in rules.items():
        if name in content and not rule.fits(content[name]):
            raise UserError(f"{where}{name}: is {shorten(content[name])}. Give {rule.words}.")
