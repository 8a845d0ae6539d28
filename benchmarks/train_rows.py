"""Made-up rows of the shape of real ones, in the form ``ConversationDataset`` returns, for the training benchmark.

Axis letters: N tokens, T tiles, S tile side in px.
"""

import random
from dataclasses import dataclass, replace

import numpy as np
import torch
from random_checkpoint import FIRST_TEXT_TOKEN, SPECIAL_TOKENS, image_token_id
from torch.utils.data import Dataset

from internvl.data.batch import Idle, Sample
from internvl.data.grouping import (
    IMAGE_LINK,
    EpochGroups,
    ImageLinks,
    ImageSpan,
    group_rows,
    share_prefixes,
    single_rows,
)
from internvl.data.sampling import SampleGroup
from internvl.data.tokenize import RenderedRow
from internvl.model.internvl_chat.causal_lm import IGNORE_INDEX
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.image_processing_internvl_chat import normalize_pixels
from internvl.model.vision_cache import TiledImage, VisionCache

# Tokens of the system message up to <img>, and from </img> over the question to the answer, as in the COCO recipe.
HEAD_TOKENS, TAIL_TOKENS = 45, 15
MAX_SEQ_LENGTH = 4096  # of the recipe: no group is longer
# Captions are from half to one and a half times as long as their mean, so that padding has something to pad.
CAPTION_SPREAD = (0.5, 1.5)
# Share of a text-only row that is its question.
QUESTION_SHARE = 0.5


@dataclass(frozen=True)
class RowShape:
    """Which rows one optimizer step has; lengths in tokens.

    ``images`` × ``captions`` rows about images of ``tiles`` tiles, with captions of ``caption_tokens`` on average and
    one question, or with ``own_questions`` another one each. With ``history`` that many rows of each of ``images``
    episodes instead, of which the first has one frame and each other one more. Or ``texts`` rows without any image,
    whose lengths are spread between ``shortest`` and ``longest`` evenly on a logarithmic scale.
    """

    images: int = 4
    captions: int = 5
    tiles: int = 7
    caption_tokens: int = 22
    own_questions: bool = False
    history: int = 0
    texts: int = 0
    shortest: int = 20
    longest: int = 2000

    @property
    def num_rows(self) -> int:
        return self.texts or self.images * (self.history or self.captions)


class MadeUpRows(Dataset):
    """The rows of one optimizer step, which is an epoch, ready in memory.

    Items are as ``ConversationDataset`` has them, by a row's number or a :class:`SampleGroup`. Images are bytes, or
    with ``float_pixels`` normalised already. With a ``vision_cache`` their features are looked up there first;
    ``always_new`` gives them other names in each epoch, under which nothing is kept yet.
    """

    def __init__(
        self,
        shape: RowShape,
        config: InternVLChatConfig,
        *,
        seed: int = 0,
        float_pixels: bool = False,
        vision_cache: VisionCache | None = None,
        always_new: bool = False,
    ):
        rng = random.Random(seed)
        last = config.llm_config.vocab_size - SPECIAL_TOKENS
        self.vision_cache = vision_cache
        self.image_tokens, self.image_token_id = 0, image_token_id(config)
        self.always_new = always_new
        self.images: list[TiledImage] = []
        self.samples: list[RenderedRow] = []
        self.owners: list[tuple[int, ...]] = []  # which images each row has

        def words(count: int) -> list[int]:
            return [rng.randrange(FIRST_TEXT_TOKEN, last) for _ in range(count)]

        def add(prompt: list[int], answer: list[int]) -> None:
            self.samples.append(RenderedRow(prompt + answer, [IGNORE_INDEX] * len(prompt) + answer))

        if shape.texts:
            for length in np.geomspace(shape.shortest, shape.longest, shape.texts).round().astype(int).tolist():
                question = max(1, int(length * QUESTION_SHARE))
                add(words(question), words(length - question))
            return
        image = [self.image_token_id] * (shape.tiles * config.num_image_token)
        head, tail = words(HEAD_TOKENS), words(TAIL_TOKENS)
        generator = torch.Generator().manual_seed(seed)
        size = (shape.tiles, 3, config.image_size, config.image_size)

        def add_about(images: tuple[int, ...]) -> None:
            """Add a row with a question and an answer about some images."""
            question = words(TAIL_TOKENS) if shape.own_questions else tail
            add(
                head + image * len(images) + question,
                words(round(shape.caption_tokens * rng.uniform(*CAPTION_SPREAD))),
            )
            self.owners.append(images)

        for _ in range(shape.images * max(1, shape.history)):
            tiles = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
            key = vision_cache.key(tiles.numpy().tobytes(), {}) if vision_cache else None
            self.images.append(TiledImage(tiles=normalize_pixels(tiles) if float_pixels else tiles, key=key))
        for number in range(shape.images):
            for count in range(1, shape.history + 1):
                first = number * shape.history
                add_about(tuple(range(first, first + count)))
            for _ in range(0 if shape.history else shape.captions):
                add_about((number,))
        self.image_tokens = len(image)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row alone."""
        return [len(sample.input_ids) for sample in self.samples]

    def groups(self, *, share: bool, grouped: bool) -> EpochGroups:
        """Return the rows in groups that ``share`` an image, or alone; not ``grouped``: as if all were as long."""
        if not share:
            return single_rows(self.lengths if grouped else [1] * len(self))
        counts = np.array([len(images) for images in self.owners])
        chains = [images[: end + 1] for images in self.owners for end in range(len(images))]
        table = np.array([(hash(chain) % 2**63, len(chain) * self.image_tokens) for chain in chains], IMAGE_LINK)
        return group_rows(
            np.array([images[0] for images in self.owners]) + 1,
            self.lengths,
            counts * self.image_tokens,
            max_rows=len(self),
            max_tokens=MAX_SEQ_LENGTH,
            links=ImageLinks(counts.cumsum() - counts, counts, table),
        )

    def __getitem__(self, group: int | SampleGroup) -> Sample | Idle:
        group = group if isinstance(group, SampleGroup) else SampleGroup((group,), 0)
        if not group.items:
            return Idle()
        spans = [[ImageSpan(number, self.image_tokens) for number in self.images_of(item)] for item in group.items]
        shared = share_prefixes([self.samples[item] for item in group.items], spans, self.image_token_id)
        return Sample.of(shared, [self.image(number, group.epoch) for number in shared.images], [])

    def images_of(self, item: int) -> tuple[int, ...]:
        """Return which images a row has."""
        return self.owners[item] if self.owners else ()

    def image(self, number: int, epoch: int) -> TiledImage:
        """Return an image, or its features where they are kept."""
        image = self.images[number]
        if self.vision_cache is None:
            return image
        if self.always_new:
            image = replace(image, key=self.vision_cache.key(f"{image.key} {epoch}".encode(), {}))
        features = self.vision_cache.load(image.key)
        return image if features is None else TiledImage(features=features, key=image.key)
