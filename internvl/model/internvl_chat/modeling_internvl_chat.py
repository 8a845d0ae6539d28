"""The chat model: InternViT tiles → pixel unshuffle → projector → language model.

Axis letters: T tiles of the whole batch, P image tokens a tile, B batch, N tokens, C language model channels.
"""

from copy import deepcopy

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

# transformers before 5.6 copies of a checkpoint's files those that this one names, and none that they name in turn.
# So those are named here, too; `as` marks what is imported for that alone.
from .attention import attend as attend
from .causal_lm import SupervisedCausalLM as SupervisedCausalLM
from .chatting import ChatMixin
from .compat import CACHE_NAME, warn_if_untested
from .configuration_intern_vit import InternVisionConfig as InternVisionConfig
from .configuration_internlm2 import InternLM2Config as InternLM2Config
from .configuration_internvl_chat import InternVLChatConfig
from .conversation import IMG_CONTEXT_TOKEN, get_conv_template
from .image_processing_internvl_chat import normalize_pixels
from .language_models import LANGUAGE_MODELS, language_model_of
from .modeling_intern_vit import InternVisionModel
from .modeling_internlm2 import InternLM2ForCausalLM as InternLM2ForCausalLM
from .modeling_qwen import InternVLQwen2ForCausalLM as InternVLQwen2ForCausalLM
from .rotary import rotary_cos_sin as rotary_cos_sin
from .sequence_layout import SequenceLayout as SequenceLayout

try:
    from peft import LoraConfig, get_peft_model
except ImportError:
    get_peft_model = None

warn_if_untested()
# Tiles a frozen encoder takes at once: enough to fill a GPU, and 0.3 GB of one layer's activations of InternViT-300M.
VISION_BATCH = 32
BACKBONE_LORA_TARGETS = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]


def pixel_unshuffle(features: torch.Tensor, scale: float, version: str) -> torch.Tensor:
    """Trade resolution for channels: (T, H, W, C) → (T, H·scale, W·scale, C/scale²).

    Version ``v2`` keeps rows and columns in place; the historic ``v1`` swaps them.
    """
    tiles, height, width, channels = features.shape
    features = features.reshape(tiles, height, int(width * scale), int(channels / scale))
    features = features.transpose(1, 2)
    features = features.reshape(tiles, int(width * scale), int(height * scale), int(channels / scale**2))
    return features if version == "v1" else features.transpose(1, 2)


class InternVLChatModel(ChatMixin, PreTrainedModel, GenerationMixin):
    """InternVL-Chat: answers questions about images.

    The forward pass:

    1. every tile goes through the vision encoder (``vision_model``);
    2. 2×2 patches are folded into one, and the projector (``mlp1``) maps them to language model channels;
    3. the embeddings of ``<IMG_CONTEXT>`` tokens are replaced by those features, in order;
    4. the language model (``language_model``) reads the mixed sequence.
    """

    config_class = InternVLChatConfig
    main_input_name = "input_ids"
    base_model_prefix = "language_model"
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "InternVisionEncoderLayer",
        *(member.layer_class.__name__ for member in LANGUAGE_MODELS.values()),
    ]
    _supports_sdpa = True
    _supports_flash_attn = True
    # transformers' Trainer asks: `num_items_in_batch` is honoured, so losses are means over the whole optimizer step.
    accepts_loss_kwargs = True

    def __init__(self, config: InternVLChatConfig):
        super().__init__(config)
        self.template = config.template
        self.num_image_token = config.num_image_token
        # Set from the tokenizer by whoever pairs the two: the id is not part of the published config.
        self.img_context_token_id: int | None = None
        self.system_message = get_conv_template(config.template).system_message if config.template else ""

        self.vision_model = InternVisionModel(config.vision_config)
        self.language_model = language_model_of(config.llm_config).model_class(config.llm_config)
        unshuffled = int(config.vision_config.hidden_size / config.downsample_ratio**2)
        width = config.llm_config.hidden_size
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(unshuffled), nn.Linear(unshuffled, width), nn.GELU(), nn.Linear(width, width)
        )
        self.post_init()
        # The original trainer saved LoRA weights inside the whole model, with their rank in the config.
        if config.use_backbone_lora:
            self.wrap_backbone_lora(r=config.use_backbone_lora, lora_alpha=2 * config.use_backbone_lora)
        if config.use_llm_lora:
            self.wrap_llm_lora(r=config.use_llm_lora, lora_alpha=2 * config.use_llm_lora)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    @property
    def llm_lora_targets(self) -> list[str]:
        """The linear layers of the language model's blocks, by the ends of their names."""
        return list(language_model_of(self.config.llm_config).lora_targets)

    def wrap_backbone_lora(self, r: int = 128, lora_alpha: int = 256, lora_dropout: float = 0.05) -> None:
        """Add LoRA (arXiv:2106.09685) of rank ``r`` to every linear layer of the vision encoder's blocks."""
        self.vision_model = self._wrap_lora(self.vision_model, BACKBONE_LORA_TARGETS, r, lora_alpha, lora_dropout)

    def wrap_llm_lora(self, r: int = 128, lora_alpha: int = 256, lora_dropout: float = 0.05) -> None:
        """Add LoRA of rank ``r`` to every linear layer of the language model's blocks."""
        self.language_model = self._wrap_lora(
            self.language_model, self.llm_lora_targets, r, lora_alpha, lora_dropout, task_type="CAUSAL_LM"
        )

    @staticmethod
    def _wrap_lora(module, targets, r, lora_alpha, lora_dropout, task_type=None) -> nn.Module:
        if get_peft_model is None:
            raise ImportError("LoRA needs the package peft, which is not installed. Run: pip install peft")
        config = LoraConfig(
            r=r,
            target_modules=targets,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            task_type=task_type,
        )
        return get_peft_model(module, config)

    def extract_feature(self, pixel_values: torch.Tensor, num_calls: int | None = None) -> torch.Tensor:
        """Return the language model's view of each tile: (T, 3, S, S) → (T, P, C).

        ``pixel_values`` is normalised float, or uint8 as it comes from the data, which is normalised here. A frozen
        encoder keeps nothing for a backward pass, computes in the precision of its weights, and takes ``VISION_BATCH``
        tiles at a time, or makes ``num_calls`` calls: where weights are sharded, all ranks must make equally many.
        """
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in self.vision_model.parameters()):
            return self.mlp1(self.encode_tiles(pixel_values))
        parts = pixel_values.tensor_split(num_calls) if num_calls else pixel_values.split(VISION_BATCH)
        # Autocast would compute norms in float32, twice as slow and in twice the memory, and unlike everywhere else.
        with torch.no_grad(), torch.autocast(pixel_values.device.type, enabled=False):
            patches = torch.cat([self.encode_tiles(tiles) for tiles in parts])
        return self.mlp1(patches)

    def encode_tiles(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return what the projector takes of each tile: 2 × 2 patches folded into one, (T, P, channels)."""
        if pixel_values.dtype == torch.uint8:
            pixel_values = normalize_pixels(pixel_values)
        if self.config.select_layer == -1:
            states = self.vision_model(pixel_values).last_hidden_state
        else:
            outputs = self.vision_model(pixel_values, output_hidden_states=True)
            states = outputs.hidden_states[self.config.select_layer]
        patches = states[:, 1:]
        side = int(patches.shape[1] ** 0.5)
        grid = patches.unflatten(1, (side, side))
        return pixel_unshuffle(grid, self.config.downsample_ratio, self.config.ps_version).flatten(1, 2)

    def embed(self, input_ids: torch.Tensor, visual_features: torch.Tensor | None) -> torch.Tensor:
        """Return the input embeddings (B, N, C) with image features in place of the ``<IMG_CONTEXT>`` tokens.

        ``visual_features`` is (T, P, C), tiles in the order in which their tokens stand in the batch.

        Raises:
            ValueError: the numbers of image tokens and features differ, with both numbers. Going on would train or
                answer on misplaced images.
        """
        embeddings = self.get_input_embeddings()(input_ids)
        if visual_features is None:
            return embeddings
        if self.img_context_token_id is None:
            raise ValueError(
                "model.img_context_token_id is not set. Set it to "
                f"tokenizer.convert_tokens_to_ids({IMG_CONTEXT_TOKEN!r}) once after loading."
            )
        selected = input_ids == self.img_context_token_id
        features = visual_features.reshape(-1, embeddings.shape[-1])
        num_tokens, num_features = int(selected.sum()), features.shape[0]
        if num_tokens != num_features:
            raise ValueError(
                f"The prompt holds {num_tokens} {IMG_CONTEXT_TOKEN} tokens but the images give {num_features} "
                f"features ({visual_features.shape[0]} tiles × {visual_features.shape[1]}). Insert one token per "
                "feature; a prompt cut by max_seq_length is the usual cause."
            )
        # A model that is spread over several devices may have its embeddings on another than the ids.
        return embeddings.masked_scatter(selected[..., None].to(embeddings.device), features.to(embeddings))

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        image_flags: torch.Tensor | None = None,
        past_key_values=None,
        labels: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
        num_vision_calls: int | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Compute logits, and the loss when ``labels`` are given.

        Args:
            pixel_values: (T, 3, S, S), the tiles of the whole batch, as :meth:`extract_feature` takes them; None for
                text alone.
            input_ids: int64 (B, N).
            attention_mask: (B, N), 1 where a token is.
            position_ids: int64 (B, N); counted from 0 without it.
            image_flags: (T,) or (T, 1); 0 marks a dummy tile whose features go nowhere. None: all are real.
            past_key_values: keys and values of the positions before, while generating.
            labels: int64 (B, N), -100 where nothing is to be learnt.
            visual_features: (T, P, C), the features of all real tiles, instead of ``pixel_values``.
            num_vision_calls: as of :meth:`extract_feature`.
            kwargs: passed to :meth:`SupervisedCausalLM.forward` (``loss_weight``, ``num_items_in_batch``, …).

        Raises:
            ValueError: image tokens and image features differ in number.
        """
        if pixel_values is not None:
            visual_features = self.extract_feature(pixel_values, num_vision_calls)
            if image_flags is not None:
                visual_features = visual_features[image_flags.reshape(-1) == 1]
        return self.language_model(
            inputs_embeds=self.embed(input_ids, visual_features),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            **kwargs,
        )

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **generate_kwargs,
    ) -> torch.Tensor:
        """Generate answers; return the new tokens only, int64 (B, at most max_new_tokens).

        Args:
            pixel_values: (T, 3, S, S), the tiles of the whole batch.
            input_ids: int64 (B, N), padded on the left.
            attention_mask: (B, N), 1 where a token is.
            visual_features: (T, P, C), images that are encoded already, instead of ``pixel_values``.
            generation_config: instead of the model's own.
            generate_kwargs: other arguments of transformers' ``generate``.
        """
        if visual_features is None and pixel_values is not None:
            visual_features = self.extract_feature(pixel_values)
        config = deepcopy(generation_config or self.generation_config)
        if config.pad_token_id is None:
            config.pad_token_id = self.config.llm_config.pad_token_id
        not_settings = config.update(**generate_kwargs)
        embeddings = self.embed(input_ids, visual_features)
        if attention_mask is not None:
            attention_mask = attention_mask.to(embeddings.device)
        answers_per_prompt = max(config.num_beams or 1, config.num_return_sequences or 1)
        if answers_per_prompt > 1 and embeddings.shape[1] > 1 and config.use_cache is not False:
            cache = self.read_prompts(embeddings, attention_mask)
            cache.batch_repeat_interleave(answers_per_prompt)
            not_settings[CACHE_NAME] = cache
        return self.language_model.generate(
            inputs_embeds=embeddings, attention_mask=attention_mask, generation_config=config, **not_settings
        )

    def read_prompts(self, embeddings: torch.Tensor, attention_mask: torch.Tensor | None) -> Cache:
        """Return the cache of prompts (B, N, C) without their last tokens, which generating starts from.

        transformers repeats prompts for every beam before it reads them; this reads each once.
        """
        if attention_mask is None:
            attention_mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
        position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        outputs = self.language_model(
            inputs_embeds=embeddings[:, :-1],
            attention_mask=attention_mask[:, :-1],
            position_ids=position_ids[:, :-1],
            use_cache=True,
            return_logits=False,
        )
        return getattr(outputs, CACHE_NAME)
