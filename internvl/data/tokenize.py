"""Rows to token ids and labels: what the model reads and which tokens are supervised."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from internvl.data.images import TilingConfig
from internvl.data.problems import RowError
from internvl.model.internvl_chat.causal_lm import IGNORE_INDEX
from internvl.model.internvl_chat.conversation import (
    IMAGE_PLACEHOLDER,
    IMG_CONTEXT_TOKEN,
    ConversationTemplate,
    Turn,
    place_images,
    render_turns,
)

TOO_LONG_ADVICE = (
    "Raise --max_seq_length, lower --max_dynamic_patch, pass --on_long_sample fewer_tiles or skip, or shorten the row"
)


@dataclass(frozen=True)
class RenderSettings:
    """How rows become samples; sizes in px, lengths in tokens. Fields have the names of the training's flags."""

    template: ConversationTemplate
    image_size: int
    num_image_token: int
    max_seq_length: int
    dynamic_image_size: bool = True
    use_thumbnail: bool = True
    min_dynamic_patch: int = 1
    max_dynamic_patch: int = 6
    pad2square: bool = False
    min_num_frame: int = 8
    max_num_frame: int = 32
    sampling_method: str = "rand"
    on_long_sample: str = "truncate"
    allow_outside_root: bool = False
    draft_decoding: bool = False

    @property
    def tiling(self) -> TilingConfig:
        """How images are tiled."""
        return TilingConfig(
            image_size=self.image_size,
            dynamic=self.dynamic_image_size,
            use_thumbnail=self.use_thumbnail,
            min_num=self.min_dynamic_patch,
            max_num=self.max_dynamic_patch,
            pad2square=self.pad2square,
        )


class RenderedRow(NamedTuple):
    """Token ids of one conversation and, for each, the same id where it is supervised, -100 elsewhere.

    ``weights`` are what each token's loss counts, 0 where it is not supervised; () where each supervised one counts 1.
    """

    input_ids: list[int]
    labels: list[int]
    weights: Sequence[float] = ()


def render_row(
    turns: list[Turn],
    num_tiles: list[int],
    *,
    tokenizer,
    template: ConversationTemplate,
    num_image_token: int,
    answer_weights: Sequence[float] = (),
) -> RenderedRow:
    """Tokenize a conversation, with the image tokens of its images.

    Each segment of the prompt is tokenized alone, so the ids in front of an answer are exactly those of the prompt at
    inference. Supervised are the answers and their end marks.

    Example: with 2 tiles of 256 tokens, ``<image>`` becomes ``<img>``, 512 × ``<IMG_CONTEXT>``, ``</img>``.

    Args:
        turns: the whole conversation, with a ``<image>`` for each image.
        num_tiles: tiles of each image, in order.
        tokenizer: the model's.
        template: the conversation template of the prompt.
        num_image_token: image tokens of a tile.
        answer_weights: what each answer counts; () for 1. One of weight 0 is not supervised.
    """
    placed = place_images(turns, [tiles * num_image_token for tiles in num_tiles])
    input_ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]  # Qwen has none
    labels = [IGNORE_INDEX] * len(input_ids)
    segments = render_turns(template, placed)
    encoded = tokenizer([segment.text for segment in segments], add_special_tokens=False)["input_ids"]
    weights = [0.0] * len(input_ids)
    by_answer = iter(answer_weights or [1.0] * len(segments))
    for segment, ids in zip(segments, encoded, strict=True):
        weight = next(by_answer) if segment.is_target else 0.0
        input_ids += ids
        labels += ids if weight else [IGNORE_INDEX] * len(ids)
        weights += [weight] * len(ids)
    return RenderedRow(input_ids, labels, weights if answer_weights else ())


def count_text_tokens(conversations: list[list[Turn]], *, tokenizer, template: ConversationTemplate) -> list[int]:
    """Return how many tokens each conversation takes, its images' runs of image tokens not counted.

    Much faster than rendering them: texts that occur again, such as the question about every image, are tokenized
    once, and image tokens not at all. Tokens are split at special tokens first, so none depends on such a run.
    """
    lengths: dict[str, int] = {}
    rendered = []
    for turns in conversations:
        num_images = sum(turn.value.count(IMAGE_PLACEHOLDER) for turn in turns if turn.role == "human")
        segments = render_turns(template, place_images(turns, [0] * num_images))
        rendered.append([segment.text for segment in segments])
    texts = list({text for segments in rendered for text in segments})
    # The tokenizers library's own batch call: no offsets, no attention masks.
    for text, encoding in zip(
        texts, tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True
    ):
        lengths[text] = len(encoding)
    first = 0 if tokenizer.bos_token_id is None else 1
    return [first + sum(lengths[text] for text in segments) for segments in rendered]


def truncate_row(row: RenderedRow, max_length: int, *, image_token_id: int, where: str) -> RenderedRow:
    """Cut a row that is too long from the end of the conversation.

    Args:
        row: ids and labels; returned as it is if it is short enough.
        max_length: most tokens.
        image_token_id: id of ``<IMG_CONTEXT>``.
        where: the row's file and line, for messages.

    Raises:
        RowError: the cut would go through an image, or leave nothing to learn.
    """
    length = len(row.input_ids)
    if length <= max_length:
        return row
    if image_token_id in row.input_ids[max_length:]:
        what = (
            f"takes {length} tokens and max_seq_length {max_length} would cut through its {IMG_CONTEXT_TOKEN} tokens"
        )
        raise RowError(where, "images longer than max_seq_length", what, TOO_LONG_ADVICE)
    cut = RenderedRow(row.input_ids[:max_length], row.labels[:max_length], row.weights[:max_length])
    if all(label == IGNORE_INDEX for label in cut.labels):
        what = f"takes {length} tokens and max_seq_length {max_length} would cut every answer off"
        raise RowError(where, "answers longer than max_seq_length", what, TOO_LONG_ADVICE)
    return cut
