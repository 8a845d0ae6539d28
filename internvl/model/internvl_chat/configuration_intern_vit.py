"""Configuration of the vision encoder, InternViT."""

from transformers import PretrainedConfig


class InternVisionConfig(PretrainedConfig):
    """Shape of an InternViT (arXiv:2312.14238, section 3; InternViT-300M-448px for InternVL2-2B).

    Sizes are in channels, layers or heads; ``image_size`` and ``patch_size`` in pixels. ``norm_type`` is
    ``layer_norm`` or ``rms_norm``. Defaults are those of the published configuration class (InternViT-6B), so that
    a field left out of a published ``config.json`` means the same here.
    """

    model_type = "intern_vit_6b"
    base_config_key = "vision_config"

    # Written out: transformers made configurations dataclasses in 5.x, and a constructor works before and after.
    def __init__(
        self,
        num_channels: int = 3,
        patch_size: int = 14,
        image_size: int = 224,
        hidden_size: int = 3200,
        num_attention_heads: int = 25,
        intermediate_size: int = 12800,
        num_hidden_layers: int = 48,
        qkv_bias: bool = False,
        qk_normalization: bool = True,
        hidden_act: str = "gelu",
        norm_type: str = "rms_norm",
        layer_norm_eps: float = 1e-6,
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        initializer_factor: float = 0.1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_channels = num_channels
        self.patch_size = patch_size
        self.image_size = image_size
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.qkv_bias = qkv_bias
        self.qk_normalization = qk_normalization
        self.hidden_act = hidden_act
        self.norm_type = norm_type
        self.layer_norm_eps = layer_norm_eps
        self.dropout = dropout
        self.drop_path_rate = drop_path_rate
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        self.initializer_factor = initializer_factor
