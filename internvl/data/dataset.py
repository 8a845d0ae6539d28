"""The training set: meta file → mixed rows → samples of ids, labels and pixel values.

Axis letters: N tokens, T tiles, S tile side in pixels.
"""

import logging
import random
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from internvl.data.annotation import AnnotationFile, Row
from internvl.data.media import read_picture, read_picture_size
from internvl.data.meta import DatasetSpec
from internvl.data.rendering import Sample, render_sample, truncate_sample
from internvl.errors import UserError
from internvl.model.internvl_chat.conversation import IMG_CONTEXT_TOKEN, ConversationTemplate
from internvl.model.internvl_chat.image_processing_internvl_chat import (
    count_tiles,
    degrade_jpeg,
    expand_to_square,
    split_into_tiles,
    to_pixel_values,
)

logger = logging.getLogger(__name__)

# The published augmentation: JPEG qualities drawn uniformly from these.
JPEG_QUALITIES = range(75, 101)


@dataclass(frozen=True)
class RenderSettings:
    """How rows become samples; sizes in px, lengths in tokens."""

    template: ConversationTemplate
    image_size: int
    num_image_token: int
    max_seq_length: int
    dynamic_image_size: bool = True
    use_thumbnail: bool = True
    min_dynamic_patch: int = 1
    max_dynamic_patch: int = 6
    pad2square: bool = False


class BadSample(NamedTuple):
    """A row that could not be read during training, and why; the collator leaves it out and counts it."""

    where: str
    reason: str


class ConversationDataset(Dataset):
    """Rows of all data sets of a meta file, mixed by ``repeat_time``, as training samples.

    An item is ``{"input_ids": int64 (N,), "labels": int64 (N,), "pixel_values": float32 (T, 3, S, S)}``;
    ``pixel_values`` is None for text. With ``on_bad_sample`` "skip" an unreadable row is a :class:`BadSample` instead;
    with "error" it raises :class:`UserError`. It is never replaced by another row.
    """

    def __init__(
        self,
        specs: list[DatasetSpec],
        tokenizer,
        settings: RenderSettings,
        *,
        seed: int = 0,
        on_bad_sample: str = "error",
    ):
        self.specs = specs
        self.tokenizer = tokenizer
        self.settings = settings
        self.seed = seed
        self.on_bad_sample = on_bad_sample
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
        # (spec, file) of every annotation file, and for each item of the epoch the file and the row in it.
        self.files = [(spec, AnnotationFile(path)) for spec in specs for path in spec.annotations]
        self.index = self._mix()

    def _mix(self) -> np.ndarray:
        """Return int64 (items, 2): file number and row of each item of an epoch."""
        items = []
        for spec in self.specs:
            numbers = [number for number, (owner, _) in enumerate(self.files) if owner is spec]
            rows = np.array(
                [(number, row) for number in numbers for row in range(len(self.files[number][1]))], dtype=np.int64
            ).reshape(-1, 2)
            if len(rows) == 0:
                raise UserError(f"{spec.annotations[0]}: holds no rows (data set {spec.name}). Add rows or remove it.")
            if spec.length is not None and spec.length != len(rows):
                logger.warning("Data set %s declares %d rows and has %d.", spec.name, spec.length, len(rows))
            whole, share = divmod(spec.repeat_time, 1)
            chosen = np.random.default_rng([self.seed, len(rows)]).permutation(len(rows))[: round(share * len(rows))]
            items.append(np.concatenate([rows] * int(whole) + [rows[np.sort(chosen)]]))
        return np.concatenate(items)

    def __len__(self) -> int:
        return len(self.index)

    def tile_limit(self, spec: DatasetSpec, num_images: int) -> int:
        """Return the most tiles one picture may have; pictures of one row share the limit, as in the original."""
        if not self.settings.dynamic_image_size:
            return 1
        return max(1, (spec.max_dynamic_patch or self.settings.max_dynamic_patch) // max(1, num_images))

    def tiling(self, spec: DatasetSpec, num_images: int) -> dict:
        """Return the keyword arguments of the tiler for one picture of a row."""
        limit = self.tile_limit(spec, num_images)
        return {
            "min_num": min(self.settings.min_dynamic_patch, limit),
            "max_num": limit,
            "image_size": self.settings.image_size,
            "use_thumbnail": self.settings.use_thumbnail and self.settings.dynamic_image_size,
        }

    def render(self, row: Row, num_tiles: list[int]) -> Sample:
        """Return ids and labels of a row whose pictures have ``num_tiles`` tiles, cut to max_seq_length."""
        sample = render_sample(
            list(row.turns),
            num_tiles,
            tokenizer=self.tokenizer,
            template=self.settings.template,
            num_image_token=self.settings.num_image_token,
        )
        return truncate_sample(
            sample, self.settings.max_seq_length, image_token_id=self.image_token_id, where=row.where
        )

    def check(self) -> list[int]:
        """Check every row before training and return each item's length in tokens.

        Reads text completely and pictures by their headers. Raises:
            UserError: rows cannot be trained on; the first ten are named, all are counted.
        """
        lengths, problems, sizes = {}, [], {}
        unique = np.unique(self.index, axis=0)
        for number, position in tqdm(unique, desc="Checking rows", unit=" rows", leave=False, delay=2):
            spec, file = self.files[number]
            try:
                row = file.row(position)
                num_tiles = []
                for name in row.images:
                    key = (spec.root, name)
                    if key not in sizes:
                        sizes[key] = read_picture_size(spec.root, name, row.where)
                    num_tiles.append(count_tiles(*sizes[key], **self.tiling(spec, len(row.images))))
                lengths[number, position] = len(self.render(row, num_tiles).input_ids)
            except UserError as err:
                problems.append(str(err))
        if problems:
            more = f"\n… and {len(problems) - 10} more." if len(problems) > 10 else ""
            noun = "row" if len(problems) == 1 else "rows"
            raise UserError(
                "\n".join(problems[:10]) + more + f"\n{len(problems)} of {len(unique)} {noun} cannot be trained on; "
                "nothing was trained."
            )
        return [lengths[number, position] for number, position in self.index]

    def __getitem__(self, item: int) -> dict[str, torch.Tensor | None] | BadSample:
        number, position = self.index[item]
        spec, file = self.files[number]
        try:
            return self._sample(spec, file.row(position))
        except UserError as err:
            if self.on_bad_sample == "error":
                raise
            return BadSample(file.where(position), str(err))

    def _sample(self, spec: DatasetSpec, row: Row) -> dict[str, torch.Tensor | None]:
        tiles, num_tiles = [], []
        for name in row.images:
            image = read_picture(spec.root, name, row.where)
            # As in the original: with tiles, or augmented, a picture is not padded.
            if self.settings.pad2square and not self.settings.dynamic_image_size and not spec.data_augment:
                image = expand_to_square(image)
            picture = split_into_tiles(image, **self.tiling(spec, len(row.images)))
            tiles += picture
            num_tiles.append(len(picture))
        if spec.data_augment:
            tiles = [degrade_jpeg(tile, random.choice(JPEG_QUALITIES)) for tile in tiles]
        sample = self.render(row, num_tiles)
        return {
            "input_ids": torch.tensor(sample.input_ids),
            "labels": torch.tensor(sample.labels),
            "pixel_values": to_pixel_values(tiles, self.settings.image_size) if tiles else None,
        }
