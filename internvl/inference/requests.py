"""What an engine is asked, and how a checkpoint makes tokens of it: the part of inference that needs no weights."""

from collections.abc import Sequence, Sized
from typing import Any, NamedTuple, Protocol

from transformers import PreTrainedTokenizerFast

from internvl.data.images import TilingConfig
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


class Request(NamedTuple):
    """One question; ``images`` holds those of each ``<image>`` in it, in order, as an engine's ``read`` gives them.

    The length of an image is its number of tiles. ``question`` is a text, which images without markers are put
    before, or the turns of a conversation up to the one to answer.
    """

    images: Sequence[Any]
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
        self.tiling = TilingConfig.of(config, max_tiles)

    @property
    def template(self) -> ConversationTemplate:
        """The conversation template."""
        return get_conv_template(self.config.template)

    def prompt_ids(self, turns: Sequence[Turn], num_tiles: Sequence[int]) -> list[int]:
        """Return the tokens of a conversation up to an open answer; ``num_tiles`` are those of each ``<image>``."""
        placed = place_images(list(turns), [count * self.config.num_image_token for count in num_tiles])
        segments = render_turns(self.template, placed, add_generation_prompt=True)
        return self.tokenizer(join_segments(segments))["input_ids"]


class PromptTiles(Protocol):
    """What the length of a prompt depends on: :class:`PromptRules` has it, and so has every engine."""

    config: InternVLChatConfig
    tokenizer: PreTrainedTokenizerFast
    tiling: TilingConfig

    @property
    def template(self) -> ConversationTemplate: ...


class AnsweringEngine(PromptTiles, Protocol):
    """What evaluation needs of an engine."""

    def read(self, image, max_tiles: int | None = None, where: str | None = None) -> Sized:
        """Return an image, a file's path or a PIL image, as :meth:`answer` takes it; ``where`` is for messages."""

    def answer(self, requests: Sequence[Request], **generation) -> list[str]:
        """Answer a batch; ``generation`` holds transformers' settings (max_new_tokens, num_beams, …)."""
