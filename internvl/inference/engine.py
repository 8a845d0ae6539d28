"""The one inference path of evaluation, tools and demos: pictures and a question in, an answer out."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from internvl.device import detect_device
from internvl.errors import UserError
from internvl.model.internvl_chat.image_processing_internvl_chat import (
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

    Pictures without markers in the question are put before it.
    """

    pictures: Sequence[torch.Tensor]
    question: str


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

    def tiles(self, picture: str | Path | Image.Image) -> torch.Tensor:
        """Return a picture's ``pixel_values``, float32 (T, 3, S, S).

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
        tiles = split_into_tiles(
            image,
            min_num=min(config.min_dynamic_patch, self.max_tiles),
            max_num=self.max_tiles,
            image_size=config.image_size,
            use_thumbnail=config.use_thumbnail,
        )
        return to_pixel_values(tiles, config.image_size)

    def answer(self, requests: Sequence[Request], **generation) -> list[str]:
        """Answer a batch; ``generation`` holds transformers' settings (max_new_tokens, num_beams, …)."""
        prompts, pictures = [], []
        for request in requests:
            question = request.question
            if request.pictures and "<image>" not in question:
                question = "<image>\n" * len(request.pictures) + question
            prompts.append(self.model.build_prompt([(question, None)], [len(tiles) for tiles in request.pictures]))
            pictures += request.pictures
        pixel_values = torch.cat(pictures).to(self.model.device, self.model.dtype) if pictures else None
        return self.model.answer_prompts(self.tokenizer, pixel_values, prompts, generation)
