"""The one inference path of evaluation, tools and demos: images and a question in, an answer out."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from internvl.data.media import read_image
from internvl.device import detect_device
from internvl.errors import UserError
from internvl.inference.requests import PromptRules, Request
from internvl.model.checkpoint import Checkpoint
from internvl.model.internvl_chat.image_processing_internvl_chat import (
    expand_to_square,
    open_image,
    split_into_tiles,
    stack_tiles,
)
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.loading import load_model
from internvl.model.vision_cache import TiledImage, VisionCache, image_features

__all__ = ["DTYPES", "Engine", "Request"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine(PromptRules):
    """A loaded model that answers batches of requests.

    Features of images are taken from ``vision_cache`` and kept there, where there is one.
    """

    def __init__(
        self,
        model: InternVLChatModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        max_tiles: int = 1,
        vision_cache: VisionCache | None = None,
    ):
        super().__init__(model.config, tokenizer, max_tiles=max_tiles)
        self.model = model
        self.vision_cache = vision_cache

    @classmethod
    def load(
        cls,
        checkpoint: str | Path | Checkpoint,
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

    def kept(self, path: str | Path, max_tiles: int | None = None) -> tuple[str | None, torch.Tensor | None]:
        """Return an image's name in the vision cache and its features if they are there; None and None without one.

        A file that is not there has neither: whoever reads the image says so.
        """
        if self.vision_cache is None or not Path(path).is_file():
            return None, None
        tiling = {**self.tiling(max_tiles), "square": self.pads_to_square}
        key = self.vision_cache.key(Path(path).read_bytes(), tiling)
        return key, self.vision_cache.load(key)

    def read(
        self, image: str | Path | Image.Image, max_tiles: int | None = None, where: str | None = None
    ) -> TiledImage:
        """Return an image as :meth:`answer` takes it: its features, if they are kept, or its tiles.

        Args:
            image: a file, or an image in memory.
            max_tiles: most tiles; None for the engine's limit.
            where: file and line that name the image, for messages.

        Raises:
            UserError: the file is missing or not an image.
        """
        if isinstance(image, Image.Image):
            return self.tiles(image, max_tiles)
        key, features = self.kept(image, max_tiles)
        if features is not None:
            return TiledImage(features=features, key=key)
        return self.tiles(read_image(Path(image), where) if where else image, max_tiles, key)

    def tiles(
        self, image: str | Path | Image.Image, max_tiles: int | None = None, key: str | None = None
    ) -> TiledImage:
        """Return an image cut into at most ``max_tiles`` tiles (None: the engine's limit); ``key`` names it.

        Raises:
            UserError: the file is missing or no image.
        """
        try:
            image = open_image(image)
        except (FileNotFoundError, ValueError) as err:
            raise UserError(str(err)) from err
        if self.pads_to_square:
            image = expand_to_square(image)
        tiles = split_into_tiles(image, **self.tiling(max_tiles))
        return TiledImage(tiles=stack_tiles(tiles, self.model.config.image_size), key=key)

    def answer(self, requests: Sequence[Request], **generation) -> list[str]:
        """Answer a batch; ``generation`` holds transformers' settings (max_new_tokens, num_beams, …)."""
        prompts, images = [], []
        for request in requests:
            prompts.append(self.model.render_prompt(request.turns(), [len(image) for image in request.images]))
            images += request.images
        features = image_features(self.model, images, self.vision_cache)
        return self.model.answer_prompts(self.tokenizer, None, prompts, generation, visual_features=features)
