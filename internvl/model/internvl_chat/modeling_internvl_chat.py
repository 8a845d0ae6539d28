"""The chat model: InternViT tiles → pixel unshuffle → projector → InternLM2.

Axis letters: T tiles of the whole batch, P image tokens a tile, B batch, N tokens, C language model channels.
"""

from copy import deepcopy

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_internvl_chat import InternVLChatConfig
from .conversation import (
    IMG_CONTEXT_TOKEN,
    IMG_END_TOKEN,
    IMG_START_TOKEN,
    Turn,
    get_conv_template,
    join_segments,
    place_pictures,
    render_turns,
)
from .modeling_intern_vit import InternVisionModel
from .modeling_internlm2 import InternLM2ForCausalLM

try:
    from peft import LoraConfig, get_peft_model
except ImportError:
    get_peft_model = None

LLM_LORA_TARGETS = ["attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
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


class InternVLChatModel(PreTrainedModel, GenerationMixin):
    """InternVL-Chat: answers questions about pictures.

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
    _no_split_modules = ["InternVisionEncoderLayer", "InternLM2DecoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
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
        self.language_model = InternLM2ForCausalLM(config.llm_config)
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

    def wrap_backbone_lora(self, r: int = 128, lora_alpha: int = 256, lora_dropout: float = 0.05) -> None:
        """Add LoRA (arXiv:2106.09685) of rank ``r`` to every linear layer of the vision encoder's blocks."""
        self.vision_model = self._wrap_lora(self.vision_model, BACKBONE_LORA_TARGETS, r, lora_alpha, lora_dropout)

    def wrap_llm_lora(self, r: int = 128, lora_alpha: int = 256, lora_dropout: float = 0.05) -> None:
        """Add LoRA of rank ``r`` to every linear layer of the language model's blocks."""
        self.language_model = self._wrap_lora(
            self.language_model, LLM_LORA_TARGETS, r, lora_alpha, lora_dropout, task_type="CAUSAL_LM"
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

    def extract_feature(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the language model's view of each tile: (T, 3, S, S) → (T, P, C)."""
        if self.config.select_layer == -1:
            states = self.vision_model(pixel_values).last_hidden_state
        else:
            outputs = self.vision_model(pixel_values, output_hidden_states=True)
            states = outputs.hidden_states[self.config.select_layer]
        patches = states[:, 1:]
        side = int(patches.shape[1] ** 0.5)
        grid = patches.reshape(patches.shape[0], side, side, -1)
        grid = pixel_unshuffle(grid, self.config.downsample_ratio, self.config.ps_version)
        return self.mlp1(grid.flatten(1, 2))

    def embed(self, input_ids: torch.Tensor, visual_features: torch.Tensor | None) -> torch.Tensor:
        """Return the input embeddings (B, N, C) with picture features in place of the ``<IMG_CONTEXT>`` tokens.

        ``visual_features`` is (T, P, C), tiles in the order in which their tokens stand in the batch.

        Raises:
            ValueError: the numbers of image tokens and features differ, with both numbers. Going on would train or
                answer on misplaced pictures.
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
                f"The prompt holds {num_tokens} {IMG_CONTEXT_TOKEN} tokens but the pictures give {num_features} "
                f"features ({visual_features.shape[0]} tiles × {visual_features.shape[1]}). Insert one token per "
                "feature; a prompt cut by max_seq_length is the usual cause."
            )
        return embeddings.masked_scatter(selected[..., None], features.to(embeddings))

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        image_flags: torch.Tensor | None = None,
        past_key_values=None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Compute logits, and the loss when ``labels`` are given.

        Args:
            pixel_values: float (T, 3, S, S), the normalised tiles of the whole batch; None for text alone.
            input_ids: int64 (B, N).
            attention_mask: (B, N), 1 where a token is.
            position_ids: int64 (B, N); counted from 0 without it.
            image_flags: (T,) or (T, 1); 0 marks a dummy tile whose features go nowhere. None: all are real.
            labels: int64 (B, N), -100 where nothing is to be learnt.
            kwargs: passed to :meth:`InternLM2ForCausalLM.forward` (``loss_weight``, ``num_items_in_batch``, …).

        Raises:
            ValueError: image tokens and image features differ in number.
        """
        features = None
        if pixel_values is not None:
            features = self.extract_feature(pixel_values)
            if image_flags is not None:
                features = features[image_flags.reshape(-1) == 1]
        return self.language_model(
            inputs_embeds=self.embed(input_ids, features),
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
        """Generate answers; returns the new tokens only, int64 (B, at most max_new_tokens).

        ``input_ids`` and ``attention_mask`` are (B, N), padded on the left. Pictures come as ``pixel_values``
        (T, 3, S, S) or, when already encoded, as ``visual_features`` (T, P, C). Other arguments are those of
        transformers' ``generate``.
        """
        if visual_features is None and pixel_values is not None:
            visual_features = self.extract_feature(pixel_values)
        config = deepcopy(generation_config or self.generation_config)
        if config.pad_token_id is None:
            config.pad_token_id = self.config.llm_config.pad_token_id
        not_settings = config.update(**generate_kwargs)
        return self.language_model.generate(
            inputs_embeds=self.embed(input_ids, visual_features),
            attention_mask=attention_mask,
            generation_config=config,
            **not_settings,
        )

    def chat(
        self,
        tokenizer,
        pixel_values: torch.Tensor | None,
        question: str,
        generation_config: dict,
        history: list[tuple[str, str]] | None = None,
        return_history: bool = False,
        num_patches_list: list[int] | None = None,
        IMG_START_TOKEN: str = IMG_START_TOKEN,
        IMG_END_TOKEN: str = IMG_END_TOKEN,
        IMG_CONTEXT_TOKEN: str = IMG_CONTEXT_TOKEN,
        verbose: bool = False,
    ) -> str | tuple[str, list[tuple[str, str]]]:
        """Answer ``question`` about the pictures, with the earlier (question, answer) pairs of ``history``.

        ``num_patches_list`` gives the tiles of each picture; None takes all of ``pixel_values`` as one picture. A
        first question without ``<image>`` gets the marker put in front. Returns the answer, and with
        ``return_history`` the history to pass to the next call.
        """
        if num_patches_list is None:
            num_patches_list = [len(pixel_values)] if pixel_values is not None else []
        if pixel_values is not None and sum(num_patches_list) != len(pixel_values):
            raise ValueError(
                f"num_patches_list {num_patches_list} adds up to {sum(num_patches_list)} tiles but pixel_values "
                f"holds {len(pixel_values)}. List the tiles of each picture."
            )
        history = list(history or [])
        if not history and pixel_values is not None and "<image>" not in question:
            question = "<image>\n" + question
        prompt = self.build_prompt([*history, (question, None)], num_patches_list)
        if verbose:
            print(prompt)  # noqa: T201 - asked for by the caller
        self.img_context_token_id = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
        answer = self.answer_prompts(tokenizer, pixel_values, [prompt], generation_config)[0]
        return (answer, [*history, (question, answer)]) if return_history else answer

    def batch_chat(
        self,
        tokenizer,
        pixel_values: torch.Tensor | None,
        questions: list[str],
        generation_config: dict,
        num_patches_list: list[int] | None = None,
        history: None = None,
        return_history: bool = False,
        IMG_CONTEXT_TOKEN: str = IMG_CONTEXT_TOKEN,
    ) -> list[str]:
        """Answer one question a picture, all in one batch; ``num_patches_list[i]`` tiles belong to question i."""
        if history is not None or return_history:
            raise ValueError("batch_chat keeps no history. Use chat for a conversation.")
        if pixel_values is not None and (
            num_patches_list is None
            or len(num_patches_list) != len(questions)
            or sum(num_patches_list) != len(pixel_values)
        ):
            raise ValueError(
                f"batch_chat got {len(questions)} questions, {len(pixel_values)} tiles and num_patches_list "
                f"{num_patches_list}. Give one entry per question, adding up to the tiles."
            )
        prompts = []
        for question, num_tiles in zip(questions, num_patches_list or [None] * len(questions), strict=True):
            has_picture = pixel_values is not None
            if has_picture and "<image>" not in question:
                question = "<image>\n" + question
            prompts.append(self.build_prompt([(question, None)], [num_tiles] if has_picture else []))
        self.img_context_token_id = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
        return self.answer_prompts(tokenizer, pixel_values, prompts, generation_config)

    def build_prompt(self, pairs: list[tuple[str, str | None]], num_tiles: list[int]) -> str:
        """Render (question, answer) pairs, the last answer open, with the image tokens of each picture in place.

        ``num_tiles`` holds the tiles of each picture, in the order of the ``<image>`` markers.
        """
        turns = []
        for question, answer in pairs:
            turns.append(Turn("human", question))
            if answer is not None:
                turns.append(Turn("gpt", answer))
        return self.render_prompt(turns, num_tiles)

    def render_prompt(self, turns: list[Turn], num_tiles: list[int]) -> str:
        """Render a conversation up to an open answer; ``num_tiles`` as in :meth:`build_prompt`."""
        turns = place_pictures(turns, [tiles * self.num_image_token for tiles in num_tiles])
        template = get_conv_template(self.template)
        return join_segments(
            render_turns(template, turns, system_message=self.system_message, add_generation_prompt=True)
        )

    def answer_prompts(
        self, tokenizer, pixel_values: torch.Tensor | None, prompts: list[str], generation_config: dict
    ) -> list[str]:
        """Generate from rendered prompts in one batch; returns the answers up to the template's end mark, stripped.

        ``pixel_values`` (T, 3, S, S) holds the tiles of all prompts in order.
        """
        end_mark = get_conv_template(self.template).sep.strip()
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(self.device)
        options = {"eos_token_id": tokenizer.convert_tokens_to_ids(end_mark), **generation_config}
        output_ids = self.generate(
            pixel_values=pixel_values,
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            **options,
        )
        texts = tokenizer.batch_decode(output_ids, skip_special_tokens=True)
        return [text.split(end_mark)[0].strip() for text in texts]
