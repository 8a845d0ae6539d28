"""Configuration of the whole chat model: vision encoder, projector and language model."""

from transformers import PretrainedConfig

from .configuration_intern_vit import InternVisionConfig
from .configuration_internlm2 import InternLM2Config


class InternVLChatConfig(PretrainedConfig):
    """What an InternVL-Chat checkpoint is made of and how pictures become tokens.

    - ``downsample_ratio``: side length factor of the pixel unshuffle; 0.5 turns 4 patches into 1 token.
    - ``ps_version``: ``v2``, or the historic ``v1`` whose output rows and columns are swapped.
    - ``select_layer``: which vision layer feeds the projector (-1 is the last).
    - ``force_image_size``: tile side in pixels; ``min/max_dynamic_patch``: limits on the tiles of one picture.
    - ``template``: name of the conversation template.
    - ``use_llm_lora`` / ``use_backbone_lora``: rank of LoRA weights embedded in the checkpoint, 0 for none.
    """

    model_type = "internvl_chat"
    sub_configs_defaults = {"vision_config": InternVisionConfig, "llm_config": InternLM2Config}

    vision_config: dict | PretrainedConfig | None = None
    llm_config: dict | PretrainedConfig | None = None
    use_backbone_lora: int = 0
    use_llm_lora: int = 0
    select_layer: int = -1
    force_image_size: int | None = None
    downsample_ratio: float = 0.5
    template: str | None = None
    dynamic_image_size: bool = False
    use_thumbnail: bool = False
    ps_version: str = "v1"
    min_dynamic_patch: int = 1
    max_dynamic_patch: int = 6
    pad2square: bool = False
    tie_word_embeddings: bool = False

    @property
    def image_size(self) -> int:
        """Tile side in pixels."""
        return self.force_image_size or self.vision_config.image_size

    @property
    def num_image_token(self) -> int:
        """Language model tokens one tile takes: 256 for 448 px tiles of 14 px patches."""
        return int((self.image_size // self.vision_config.patch_size) ** 2 * self.downsample_ratio**2)
