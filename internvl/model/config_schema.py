"""What a ``config.json`` may say: types and sizes, checked before anything is built of them."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

import internvl.limits as limits
from internvl.errors import UserError
from internvl.model.internvl_chat.conversation import TEMPLATES
from internvl.schema import validate

if TYPE_CHECKING:  # it loads torch, which a check of a file can do without
    from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig

# Those that transformers knows (ACT2FN).
Activation = Literal[
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu", "relu",
    "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh", "xielu",
]  # fmt: skip
Dtype = Literal["float32", "bfloat16", "float16"]
Epsilon = Annotated[float, Field(ge=0, le=limits.MAX_EPSILON)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Heads = Annotated[int, Field(ge=1, le=limits.MAX_HEADS)]
Initializer = Annotated[float, Field(ge=0, le=limits.MAX_INITIALIZER)]
IntermediateWidth = Annotated[int, Field(ge=1, le=limits.MAX_INTERMEDIATE_WIDTH)]
Layers = Annotated[int, Field(ge=1, le=limits.MAX_LAYERS)]
LayerNumber = Annotated[int, Field(ge=-limits.MAX_LAYERS, le=limits.MAX_LAYERS)]  # from the end where it is negative
Rank = Annotated[int, Field(ge=0, le=limits.MAX_RANK)]  # 0 is not an adapter
RopeTheta = Annotated[float, Field(ge=1, le=limits.MAX_ROPE_THETA)]
RopeType = Literal["default", "linear", "dynamic"]
Side = Annotated[int, Field(ge=1, le=limits.MAX_SIDE)]
Tiles = Annotated[int, Field(ge=1, le=limits.MAX_TILES)]
TokenId = Annotated[int, Field(ge=0, le=limits.MAX_TOKEN_ID)]
Width = Annotated[int, Field(ge=1, le=limits.MAX_WIDTH)]


# Dictionaries rather than pydantic's models, because the file may leave out every field, and the model's configuration
# has the defaults. Fields that are not named here are transformers' own.
class AnyPart(TypedDict, total=False):
    """Fields of the whole config and of its parts."""

    dtype: Dtype | None
    torch_dtype: Dtype | None
    num_labels: Annotated[int, Field(ge=0, le=limits.MAX_LABELS)]
    quantization_config: Annotated[None, Field(description="null: quantised weights are not read")]


class Rope(TypedDict, total=False):
    """Rotary embedding; ``type`` is the older name of ``rope_type``."""

    type: RopeType
    rope_type: RopeType
    factor: Annotated[float, Field(ge=1, le=limits.MAX_ROPE_FACTOR)]
    rope_theta: RopeTheta


class VisionConfig(AnyPart, total=False):
    """``vision_config``."""

    num_channels: Annotated[int, Field(ge=3, le=3, description="3")]
    patch_size: Side
    image_size: Side
    hidden_size: Width
    num_attention_heads: Heads
    intermediate_size: IntermediateWidth
    num_hidden_layers: Layers
    qkv_bias: bool
    qk_normalization: bool
    hidden_act: Activation
    norm_type: Literal["rms_norm", "layer_norm"]
    layer_norm_eps: Epsilon
    dropout: Fraction
    drop_path_rate: Fraction
    attention_dropout: Fraction
    initializer_range: Initializer
    initializer_factor: Initializer


class LanguageConfig(AnyPart, total=False):
    """``llm_config``."""

    architectures: list[str] | None
    model_type: str
    head_dim: Annotated[int, Field(ge=1, le=limits.MAX_WIDTH)] | None
    use_sliding_window: Annotated[Literal[False] | None, Field(description="false: every token sees all before it")]
    vocab_size: Annotated[int, Field(ge=1, le=limits.MAX_TOKEN_ID)]
    hidden_size: Width
    intermediate_size: IntermediateWidth
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads | None
    hidden_act: Activation
    max_position_embeddings: Annotated[int, Field(ge=1, le=limits.MAX_POSITIONS)]
    initializer_range: Initializer
    rms_norm_eps: Epsilon
    use_cache: bool
    tie_word_embeddings: bool
    bias: bool
    pad_token_id: TokenId | None
    bos_token_id: TokenId | None
    rope_theta: RopeTheta
    rope_scaling: Rope | None
    rope_parameters: Rope | None


class TilingConfig(TypedDict, total=False):
    """How images are cut, in ``config.json`` and in the image processor's file."""

    dynamic_image_size: bool
    use_thumbnail: bool
    min_dynamic_patch: Tiles
    max_dynamic_patch: Tiles


class ChatConfig(AnyPart, TilingConfig, total=False):
    """The whole ``config.json``."""

    vision_config: VisionConfig | None
    llm_config: LanguageConfig | None
    use_backbone_lora: Rank
    use_llm_lora: Rank
    select_layer: LayerNumber
    force_image_size: Side | None
    downsample_ratio: Annotated[float, Field(ge=0.05, le=1)]
    template: Literal[*TEMPLATES] | None  # type: ignore[valid-type]  # the names stand there only
    ps_version: Literal["v1", "v2"]
    pad2square: bool
    tie_word_embeddings: bool


class ProcessorConfig(TilingConfig, total=False):
    """The ``preprocessor_config.json`` of our image processor."""

    image_size: Side | None


# Language models of published members that are not supported, and why.
UNSUPPORTED_LLMS = {
    "Phi3ForCausalLM": "InternVL2-4B's Phi-3 has joint matrices, a template and stop tokens of its own",
    "LlamaForCausalLM": "the members with a Llama have 40B and 76B parameters, and were never tried",
    "Qwen3MoeForCausalLM": "it is a mixture of experts, whose routing has no LoRA here",
    "GptOssForCausalLM": "it is a mixture of experts, whose routing has no LoRA here",
}

CHAT, PROCESSOR = TypeAdapter(ChatConfig), TypeAdapter(ProcessorConfig)


def check_config(content: dict[str, Any], file: Path) -> None:
    """Refuse a ``config.json`` of the published layout that no model could be built from.

    Raises:
        UserError: names the first field, its value and what it may be.
    """
    validate(CHAT, content, file)
    named = (content.get("llm_config") or {}).get("architectures") or []
    if named and named[0] in UNSUPPORTED_LLMS:
        raise UserError(
            f"{file}:llm_config.architectures: is {named[0]!r}, which is not supported: {UNSUPPORTED_LLMS[named[0]]}. "
            "Take a member with InternLM2, Qwen2 or Qwen3 (docs/family.md)."
        )


def check_shapes(config: "InternVLChatConfig", file: Path) -> None:
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
        if name == "hidden_size" and getattr(part, "head_dim", None):
            continue  # Qwen3 gives the width of a head apart
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
