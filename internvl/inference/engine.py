"""The one inference path of evaluation, tools and demos: images and a question in, an answer out."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from internvl.data.images import ImageReader
from internvl.device import choose_kernels, detect_device
from internvl.inference.requests import PromptRules, Request
from internvl.model.checkpoint import Checkpoint
from internvl.model.internvl_chat.image_processing_internvl_chat import open_image
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.loading import load_model, source_of
from internvl.model.vision_cache import TiledImage, VisionCache, image_features

__all__ = ["DTYPES", "Engine", "Request"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


# Of the weights' bytes, what answering needs beside them: the cache, the vision encoder's activations.
ROOM = 1.3


def fits_one_device(checkpoint: str | Path | Checkpoint) -> bool:
    """Return whether the current GPU has room for a whole checkpoint: then nothing is gained by dividing it."""
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    weights = sum(file.stat().st_size for file in source_of(opened).weight_files)
    free, _ = torch.cuda.mem_get_info()
    return weights * ROOM < free


class Engine(PromptRules):
    """A loaded model that answers batches of requests.

    With a ``vision_cache`` features of images are looked up there, and kept there.
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
        self.images = ImageReader(self.tiling, cache=vision_cache)

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
        """Load any checkpoint folder (see ``internvl.model.loading``); an adapter is merged while it is loaded.

        Args:
            checkpoint: the folder.
            precision: auto, fp32, bf16 or fp16.
            device: cuda or cpu; None for what the machine has.
            auto: spread a model that does not fit one device over all of the machine.
            max_tiles: most tiles of an image.
        """
        choose_kernels()
        own_device, own_precision, _ = detect_device()
        device = device or own_device
        loaded = load_model(
            checkpoint,
            dtype=DTYPES[own_precision if precision == "auto" else precision],
            device=device,
            device_map="auto" if auto and device == "cuda" and not fits_one_device(checkpoint) else None,
            merge=True,
        )
        return cls(loaded.model, loaded.tokenizer, max_tiles=max_tiles)

    def read(
        self, image: str | Path | Image.Image, max_tiles: int | None = None, where: str | None = None
    ) -> TiledImage:
        """Return an image as :meth:`answer` takes it: its features, if they are cached, or its tiles.

        Args:
            image: a file, or an image in memory.
            max_tiles: most tiles; None for the engine's limit.
            where: file and line that name the image, for messages; None: its own name.

        Raises:
            UserError: the file is missing or is not an image.
        """
        limit = max_tiles or self.tiling.limit(1)
        if isinstance(image, Image.Image):
            return self.images.tile(open_image(image), limit)
        return self.images.read(Path(image), limit, where or str(image))

    def answer(self, requests: Sequence[Request], **generation) -> list[str]:
        """Answer a batch; ``generation`` holds transformers' settings (max_new_tokens, num_beams, …)."""
        prompts, images = [], []
        for request in requests:
            prompts.append(self.model.render_prompt(request.turns(), [len(image) for image in request.images]))
            images += request.images
        features = image_features(self.model, images, self.images.cache)
        return self.model.answer_prompts(self.tokenizer, None, prompts, generation, visual_features=features)
