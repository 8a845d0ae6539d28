"""Configuration of the whole chat model: vision encoder, projector and language model."""

import inspect

from transformers import PretrainedConfig, Qwen2Config, Qwen3Config

from .configuration_intern_vit import InternVisionConfig
from .configuration_internlm2 import InternLM2Config, with_published_rope

# Architecture of the language model → the class of its configuration.
LLM_CONFIGS = {
    "InternLM2ForCausalLM": InternLM2Config,
    "Qwen2ForCausalLM": Qwen2Config,
    "Qwen3ForCausalLM": Qwen3Config,
}
ARCHITECTURE_OF_TYPE = {config.model_type: name for name, config in LLM_CONFIGS.items()}


class InternVLChatConfig(PretrainedConfig):
    """What an InternVL-Chat checkpoint is made of and how images become tokens.

    - ``downsample_ratio``: side length factor of the pixel unshuffle; 0.5 turns 4 patches into 1 token.
    - ``ps_version``: ``v2``, or the historic ``v1`` whose output rows and columns are swapped.
    - ``select_layer``: which vision layer feeds the projector (-1 is the last).
    - ``force_image_size``: tile side in pixels; ``min/max_dynamic_patch``: limits on the tiles of one image.
    - ``template``: name of the conversation template.
    - ``use_llm_lora`` / ``use_backbone_lora``: rank of LoRA weights embedded in the checkpoint, 0 for none.
    """

    template: str  # None only in a config that no checkpoint has

    model_type = "internvl_chat"
    sub_configs = {"vision_config": InternVisionConfig, "llm_config": InternLM2Config}

    def __init__(
        self,
        vision_config: dict | PretrainedConfig | None = None,
        llm_config: dict | PretrainedConfig | None = None,
        use_backbone_lora: int = 0,
        use_llm_lora: int = 0,
        select_layer: int = -1,
        force_image_size: int | None = None,
        downsample_ratio: float = 0.5,
        template: str | None = None,
        dynamic_image_size: bool = False,
        use_thumbnail: bool = False,
        ps_version: str = "v1",
        min_dynamic_patch: int = 1,
        max_dynamic_patch: int = 6,
        pad2square: bool = False,
        tie_word_embeddings: bool = False,
        **kwargs,
    ):
        # Before the rest: transformers hands the attention implementation of the whole on to its parts.
        self.vision_config = as_config(vision_config, InternVisionConfig)
        self.llm_config = as_config(llm_config, LLM_CONFIGS[llm_architecture(llm_config)])
        super().__init__(**kwargs)
        self.use_backbone_lora = use_backbone_lora
        self.use_llm_lora = use_llm_lora
        self.select_layer = select_layer
        self.force_image_size = force_image_size
        self.downsample_ratio = downsample_ratio
        self.template = template
        self.dynamic_image_size = dynamic_image_size
        self.use_thumbnail = use_thumbnail
        self.ps_version = ps_version
        self.min_dynamic_patch = min_dynamic_patch
        self.max_dynamic_patch = max_dynamic_patch
        self.pad2square = pad2square
        self.tie_word_embeddings = tie_word_embeddings

    def get_text_config(self, *args, **kwargs) -> PretrainedConfig:
        """Return the language model's part, which transformers asks about vocabulary, heads and layers.

        The library finds it by itself under the name ``text_config`` only.
        """
        return self.llm_config

    def to_diff_dict(self) -> dict:
        """Return what ``config.json`` holds: of the parts, the fields of their classes and what else was set."""
        values = super().to_diff_dict()
        library = PretrainedConfig().to_dict()  # differs between versions, and says nothing about the model
        for name in self.sub_configs:
            part = getattr(self, name)
            fields = inspect.signature(type(part).__init__).parameters
            values[name] = {
                key: value
                for key, value in part.to_dict().items()
                if key in fields or key not in library or value != library[key]
            }
            if "rope_parameters" in values[name]:  # of the library's classes, from transformers 5 on
                values[name] = with_published_rope(values[name])
        return values

    @property
    def image_size(self) -> int:
        """Tile side in pixels."""
        return self.force_image_size or self.vision_config.image_size

    @property
    def num_image_token(self) -> int:
        """Language model tokens one tile takes: 256 for 448 px tiles of 14 px patches."""
        return int((self.image_size // self.vision_config.patch_size) ** 2 * self.downsample_ratio**2)


def llm_architecture(llm_config: dict | PretrainedConfig | None) -> str:
    """Return the name of a language model's class, as ``llm_config.architectures`` or its ``model_type`` say.

    Raises:
        ValueError: this folder has none of that name.
    """
    values = llm_config.to_dict() if isinstance(llm_config, PretrainedConfig) else llm_config or {}
    named = values.get("architectures") or [ARCHITECTURE_OF_TYPE.get(values.get("model_type"), "InternLM2ForCausalLM")]
    if named[0] not in LLM_CONFIGS:
        raise ValueError(
            f"llm_config.architectures: is {named[0]!r}, a language model that is not supported. Use a checkpoint "
            f"with one of: {', '.join(LLM_CONFIGS)}."
        )
    return named[0]


def as_config(values: dict | PretrainedConfig | None, config_class: type[PretrainedConfig]) -> PretrainedConfig:
    """Return a part of the configuration as an object, whatever form it came in."""
    if isinstance(values, PretrainedConfig):
        return values
    # Published files say flash_attention_2 here, which is the machine's to choose, not the checkpoint's.
    machine = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
    return config_class(**{key: value for key, value in (values or {}).items() if key not in machine})
