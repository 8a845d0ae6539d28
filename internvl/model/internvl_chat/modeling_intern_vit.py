"""The vision encoder, InternViT (arXiv:2312.14238).

Axis letters: T tiles, P patches of a tile, N = P + 1 with the class token in front, C channels, S tile side in px.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import attend
from .compat import fill_unless_loaded
from .configuration_intern_vit import InternVisionConfig


class InternRMSNorm(nn.Module):
    """Root mean square norm, computed in float32 (arXiv:1910.07467)."""

    def __init__(self, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        states = hidden_states.to(torch.float32)
        states = states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * states.to(hidden_states.dtype)


NORMS = {"rms_norm": InternRMSNorm, "layer_norm": nn.LayerNorm}


def drop_path(residual: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """Zero the residual branch of whole tiles with probability ``rate``, scaling the rest (arXiv:1603.09382)."""
    if rate == 0.0 or not training:
        return residual
    keep = residual.new_empty(residual.shape[0], 1, 1).bernoulli_(1 - rate)
    return residual * keep / (1 - rate)


class InternVisionEmbeddings(nn.Module):
    """Tile pixels to patch embeddings, with the class token in front and positions added."""

    def __init__(self, config: InternVisionConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        num_patches = (config.image_size // config.patch_size) ** 2
        self.position_embedding = nn.Parameter(torch.randn(1, num_patches + 1, config.hidden_size))

    def interpolate_positions(self, height: int, width: int) -> torch.Tensor:
        """Return positions for a grid of ``height`` × ``width`` patches, (1, 1 + height·width, C), bicubic."""
        class_position, grid = self.position_embedding[:, :1], self.position_embedding[:, 1:]
        side = int(grid.shape[1] ** 0.5)
        if (side, side) == (height, width):
            return self.position_embedding
        grid = grid.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        grid = grid.flatten(2).transpose(1, 2).to(class_position.dtype)
        return torch.cat([class_position, grid], dim=1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(T, 3, S, S) → (T, N, C)."""
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        height, width = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(patches.shape[0], 1, -1).to(patches.dtype)
        positions = self.interpolate_positions(height, width).to(patches.dtype)
        return torch.cat([class_token, patches], dim=1) + positions


class InternAttention(nn.Module):
    """Full self-attention over one tile; queries and keys normalised over all heads together when so configured."""

    is_causal = False

    def __init__(self, config: InternVisionConfig):
        super().__init__()
        self.config = config
        width = config.hidden_size
        if width % config.num_attention_heads:
            raise ValueError(
                f"vision_config: hidden_size {width} is not a multiple of num_attention_heads "
                f"{config.num_attention_heads}."
            )
        self.head_dim = width // config.num_attention_heads
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)
        if config.qk_normalization:
            self.q_norm = InternRMSNorm(width, eps=config.layer_norm_eps)
            self.k_norm = InternRMSNorm(width, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(T, N, C) → (T, N, C)."""
        query, key, value = self.qkv(hidden_states).chunk(3, dim=-1)
        if self.config.qk_normalization:
            query, key = self.q_norm(query), self.k_norm(key)
        split = (*hidden_states.shape[:-1], self.config.num_attention_heads, self.head_dim)
        query, key, value = (states.view(split).transpose(1, 2) for states in (query, key, value))
        output, _ = attend(self, query, key, value, dropout=self.config.attention_dropout)
        output = self.proj(output.flatten(2))
        return F.dropout(output, self.config.dropout, self.training)


class InternMLP(nn.Module):
    """The two-layer perceptron of an encoder block."""

    def __init__(self, config: InternVisionConfig):
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(hidden_states)))


class InternVisionEncoderLayer(GradientCheckpointingLayer):
    """Pre-norm block whose two branches are scaled by the learned vectors ``ls1`` and ``ls2``."""

    def __init__(self, config: InternVisionConfig, drop_path_rate: float):
        super().__init__()
        norm = NORMS[config.norm_type]
        self.attn = InternAttention(config)
        self.mlp = InternMLP(config)
        self.norm1 = norm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm2 = norm(config.hidden_size, eps=config.layer_norm_eps)
        self.ls1 = nn.Parameter(config.initializer_factor * torch.ones(config.hidden_size))
        self.ls2 = nn.Parameter(config.initializer_factor * torch.ones(config.hidden_size))
        self.drop_path_rate = drop_path_rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(T, N, C) → (T, N, C)."""
        branch = self.attn(self.norm1(hidden_states).to(hidden_states.dtype)) * self.ls1
        hidden_states = hidden_states + drop_path(branch, self.drop_path_rate, self.training)
        branch = self.mlp(self.norm2(hidden_states).to(hidden_states.dtype)) * self.ls2
        return hidden_states + drop_path(branch, self.drop_path_rate, self.training)


class InternVisionEncoder(nn.Module):
    """The stack of blocks; the drop path rate grows linearly from 0 to its full value."""

    def __init__(self, config: InternVisionConfig):
        super().__init__()
        last = max(config.num_hidden_layers - 1, 1)
        self.layers = nn.ModuleList(
            InternVisionEncoderLayer(config, config.drop_path_rate * index / last)
            for index in range(config.num_hidden_layers)
        )

    def forward(self, hidden_states: torch.Tensor, collect: bool) -> tuple[torch.Tensor, tuple | None]:
        """Return the last states and, if ``collect``, the input of the stack and every layer's output."""
        collected = [hidden_states]
        for layer in self.layers:
            hidden_states = layer(hidden_states)
            if collect:
                collected.append(hidden_states)
        return hidden_states, tuple(collected) if collect else None


class InternVisionModel(PreTrainedModel):
    """InternViT: tile pixels to one state per patch."""

    config_class = InternVisionConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["InternVisionEncoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: InternVisionConfig):
        super().__init__(config)
        self.embeddings = InternVisionEmbeddings(config)
        self.encoder = InternVisionEncoder(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, InternVisionEmbeddings):
            fill_unless_loaded(module.class_embedding, std=self.config.initializer_range)
            fill_unless_loaded(module.position_embedding, std=self.config.initializer_range)
        elif isinstance(module, InternVisionEncoderLayer):
            fill_unless_loaded(module.ls1, mean=self.config.initializer_factor)
            fill_unless_loaded(module.ls2, mean=self.config.initializer_factor)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    def resize_pos_embeddings(self, new_size: int) -> None:
        """Resize the stored positions in place for tiles of ``new_size`` px (bicubic, class position kept)."""
        side = new_size // self.config.patch_size
        with torch.no_grad():
            positions = self.embeddings.interpolate_positions(side, side)
        self.embeddings.position_embedding = nn.Parameter(positions.detach().clone())
        self.config.image_size = new_size

    def forward(self, pixel_values: torch.Tensor, output_hidden_states: bool = False) -> BaseModelOutputWithPooling:
        """Encode tiles.

        ``pixel_values`` is float (T, 3, S, S), normalised. ``last_hidden_state`` is (T, N, C), class token first;
        ``hidden_states`` holds the embeddings and every layer's output when asked for.
        """
        states, collected = self.encoder(self.embeddings(pixel_values), collect=output_hidden_states)
        return BaseModelOutputWithPooling(
            last_hidden_state=states, pooler_output=states[:, 0], hidden_states=collected
        )
