"""The one inference path of evaluation, tools and demos: pictures and a question in, an answer out."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from internvl.device import detect_device
from internvl.errors import UserError
from internvl.model.internvl_chat.conversation import IMAGE_PLACEHOLDER, Turn
from internvl.model.internvl_chat.image_processing_internvl_chat import (
    count_tiles,
    expand_to_square,
    open_image,
    split_into_tiles,
    to_pixel_values,
)
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.loading import load_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Request(NamedTuple):
    """One question; ``pictures`` holds ``pixel_values`` (T, 3, S, S) of each ``<image>`` in it, in order.

    ``question`` is a text, which pictures without markers are put before, or the turns of a conversation up to the
    one to answer.
    """

    pictures: Sequence[torch.Tensor]
    question: str | Sequence[Turn]

    def turns(self) -> list[Turn]:
        """Return the conversation, with all markers."""
        if not isinstance(self.question, str):
            return list(self.question)
        marked = not self.pictures or IMAGE_PLACEHOLDER in self.question
        return [
            Turn("human", self.question if marked else f"{IMAGE_PLACEHOLDER}\n" * len(self.pictures) + self.question)
        ]


class Engine:
    """A loaded model that answers batches of requests.

    ``max_tiles`` limits the tiles of one picture: 1 for no tiling. A thumbnail is added as the checkpoint's config
    says.
    """

    def __init__(self, model: InternVLChatModel, tokenizer: PreTrainedTokenizerFast, *, max_tiles: int = 1):
        self.model = model
        self.tokenizer = tokenizer
        self.max_tiles = max_tiles

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        precision: str = "auto",
        device: str | None = None,
        auto: bool = False,
        max_tiles: int = 1,
    ) -> "Engine":
        """Load any checkpoint folder (see ``internvl.model.loading``).

        ``precision`` is auto, fp32, bf16 or fp16; ``auto`` spreads the model over all devices of the machine.
        """
        own_device, own_precision, _ = detect_device()
        device = device or own_device
        loaded = load_model(
            checkpoint,
            dtype=DTYPES[own_precision if precision == "auto" else precision],
            device=device,
            device_map="auto" if auto and device != "cpu" else None,
        )
        return cls(loaded.model, loaded.tokenizer, max_tiles=max_tiles)

    def tiling(self, max_tiles: int | None) -> dict:
        """Return the keyword arguments of the tiler for a picture of at most ``max_tiles`` (None: the engine's)."""
        config = self.model.config
        limit = max_tiles or self.max_tiles
        return {
            "min_num": min(config.min_dynamic_patch, limit),
            "max_num": limit,
            "image_size": config.image_size,
            "use_thumbnail": config.use_thumbnail,
        }

    def count_tiles(self, size: tuple[int, int], max_tiles: int | None = None) -> int:
        """Return how many tiles a picture of (width, height) px has."""
        if self.model.config.pad2square and self.max_tiles == 1:
            size = (max(size), max(size))
        return count_tiles(*size, **self.tiling(max_tiles))

    def tiles(self, picture: str | Path | Image.Image, max_tiles: int | None = None) -> torch.Tensor:
        """Return a picture's ``pixel_values``, float32 (T, 3, S, S); at most ``max_tiles`` (None: the engine's limit).

        Raises:
            UserError: the file is missing or no picture.
        """
        config = self.model.config
        try:
            image = open_image(picture)
        except (FileNotFoundError, ValueError) as err:
            raise UserError(str(err)) from err
        if config.pad2square and self.max_tiles == 1:
            image = expand_to_square(image)
        return to_pixel_values(split_into_tiles(image, **self.tiling(max_tiles)), config.image_size)

    def answer(self, requests: Sequence[Request], **generation) -> list[str]:
        """Answer a batch; ``generation`` holds transformers' settings (max_new_tokens, num_beams, …)."""
        prompts, pictures = [], []
        for request in requests:
            num_tiles = [len(tiles) for tiles in request.pictures]
            prompts.append(self.model.render_prompt(request.turns(), num_tiles))
            pictures += request.pictures
        pixel_values = torch.cat(pictures).to(self.model.device, self.model.dtype) if pictures else None
        return self.model.answer_prompts(self.tokenizer, pixel_values, prompts, generation)
