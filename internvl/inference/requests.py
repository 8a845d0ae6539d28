"""What an engine is asked, and how a checkpoint makes tokens of it: the part of inference that needs no weights."""

from collections.abc import Sequence, Sized
from typing import NamedTuple, Protocol

from transformers import PreTrainedTokenizerFast

from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.conversation import (
    IMAGE_PLACEHOLDER,
    ConversationTemplate,
    Turn,
    get_conv_template,
    join_segments,
    place_images,
    render_turns,
)
from internvl.model.internvl_chat.image_processing_internvl_chat import count_tiles


class Request(NamedTuple):
    """One question; ``images`` holds those of each ``<image>`` in it, in order, as an engine's ``read`` gives them.

    The length of an image is its number of tiles. ``question`` is a text, which images without markers are put
    before, or the turns of a conversation up to the one to answer.
    """

    images: Sequence[Sized]
    question: str | Sequence[Turn]

    def turns(self) -> list[Turn]:
        """Return the conversation, with all markers."""
        if not isinstance(self.question, str):
            return list(self.question)
        marked = not self.images or IMAGE_PLACEHOLDER in self.question
        return [
            Turn("human", self.question if marked else f"{IMAGE_PLACEHOLDER}\n" * len(self.images) + self.question)
        ]


class PromptRules:
    """How a checkpoint's questions become tokens.

    ``max_tiles`` limits the tiles of one image: 1 for no tiling. A thumbnail is added as the config says.
    """

    def __init__(self, config: InternVLChatConfig, tokenizer: PreTrainedTokenizerFast, *, max_tiles: int = 1):
        self.config = config
        self.tokenizer = tokenizer
        self.max_tiles = max_tiles

    @property
    def template(self) -> ConversationTemplate:
        """The conversation template."""
        return get_conv_template(self.config.template)

    @property
    def pads_to_square(self) -> bool:
        """Whether images are padded: as in training, where they are not tiled."""
        return self.config.pad2square and self.max_tiles == 1

    def tiling(self, max_tiles: int | None) -> dict:
        """Return the keyword arguments of the tiler for an image of at most ``max_tiles`` (None: the engine's)."""
        limit = max_tiles or self.max_tiles
        return {
            "min_num": min(self.config.min_dynamic_patch, limit),
            "max_num": limit,
            "image_size": self.config.image_size,
            "use_thumbnail": self.config.use_thumbnail,
        }

    def count_tiles(self, size: tuple[int, int], max_tiles: int | None = None) -> int:
        """Return how many tiles an image of (width, height) px has."""
        if self.pads_to_square:
            size = (max(size), max(size))
        return count_tiles(*size, **self.tiling(max_tiles))

    def prompt_ids(self, turns: Sequence[Turn], num_tiles: Sequence[int]) -> list[int]:
        """Return the tokens of a conversation up to an open answer; ``num_tiles`` are those of each ``<image>``."""
        placed = place_images(list(turns), [count * self.config.num_image_token for count in num_tiles])
        segments = render_turns(self.template, placed, add_generation_prompt=True)
        return self.tokenizer(join_segments(segments))["input_ids"]


class AnsweringEngine(Protocol):
    """What evaluation needs of an engine; beside :class:`PromptRules`, two calls."""

    config: InternVLChatConfig
    tokenizer: PreTrainedTokenizerFast
    max_tiles: int
    template: ConversationTemplate

    def count_tiles(self, size: tuple[int, int], max_tiles: int | None = None) -> int: ...

    def read(self, image, max_tiles: int | None = None, where: str | None = None) -> Sized:
        """Return an image, a file's path or a PIL image, as :meth:`answer` takes it; ``where`` is for messages."""

    def answer(self, requests: Sequence[Request], **generation) -> list[str]:
        """Answer a batch; ``generation`` holds transformers' settings (max_new_tokens, num_beams, …)."""
