"""The training set: meta file → mixed rows → samples of ids, labels and pixel values.

Axis letters: N tokens, T tiles, S tile side in pixels.
"""

import logging
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from internvl.data.annotation import AnnotationFile, Row
from internvl.data.media import choose_clip, media_path, read_image, read_image_size, read_video
from internvl.data.meta import DatasetSpec
from internvl.data.problems import LongRowError, RowError
from internvl.data.rendering import TOO_LONG_ADVICE, Sample, count_text_tokens, render_sample, truncate_sample
from internvl.data.sampling import Unit
from internvl.data.sharing import share_prefix
from internvl.data.video import VideoInfo, choose_frames, place_frames
from internvl.errors import UserError
from internvl.model.internvl_chat.conversation import IMG_CONTEXT_TOKEN, ConversationTemplate, Turn
from internvl.model.internvl_chat.image_processing_internvl_chat import (
    choose_grid,
    count_tiles,
    degrade_jpeg,
    expand_to_square,
    split_into_tiles,
    stack_tiles,
)
from internvl.model.vision_cache import TiledImage, VisionCache

logger = logging.getLogger(__name__)

# The published augmentation: JPEG qualities drawn uniformly from these.
JPEG_QUALITIES = range(75, 101)
# No tokenizer needs more for the text of one frame, "Frame32: <img></img>\n".
FRAME_TEXT_TOKENS = 16


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
    min_num_frame: int = 8
    max_num_frame: int = 32
    sampling_method: str = "rand"
    on_long_sample: str = "truncate"
    allow_outside_root: bool = False
    draft_decoding: bool = False


class BadSample(NamedTuple):
    """A row that could not be read during training, and why; the collator leaves it out and counts it."""

    where: str
    reason: str


class ConversationDataset(Dataset):
    """Rows of all data sets of a meta file, mixed by ``repeat_time``, as training samples.

    An item is ``{"input_ids": int64 (N,), "labels": int64 (N,), "group": (prefix, continuations), "images": […],
    "where": ["file:line", …]}``: one row, or the rows of a :class:`Unit`, whose group is as ``SequenceLayout``
    describes it, their images and their places.
    With ``on_bad_sample`` "skip" unreadable rows are a list of :class:`BadSample` instead; with "error" they raise
    :class:`UserError`. They are never replaced by others. Features of images that ``vision_cache`` has are not
    computed again, and the images not even decoded.
    """

    def __init__(
        self,
        specs: list[DatasetSpec],
        tokenizer,
        settings: RenderSettings,
        *,
        seed: int = 0,
        on_bad_sample: str = "error",
        vision_cache: VisionCache | None = None,
    ):
        self.vision_cache = vision_cache
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
            numbers = self.file_numbers(spec)
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

    def file_numbers(self, spec: DatasetSpec) -> list[int]:
        """Return which of ``files`` belong to a data set."""
        return [number for number, (owner, _) in enumerate(self.files) if owner is spec]

    def __len__(self) -> int:
        return len(self.index)

    def tile_limit(self, spec: DatasetSpec, row: Row) -> int:
        """Return the most tiles one image may have; images of one row share the limit, as in the original.

        A frame of a video is one tile.
        """
        if not self.settings.dynamic_image_size or row.video:
            return 1
        return max(1, (spec.max_dynamic_patch or self.settings.max_dynamic_patch) // max(1, len(row.images)))

    def tiling(self, limit: int) -> dict:
        """Return the keyword arguments of the tiler for an image of at most ``limit`` tiles."""
        return {
            "min_num": min(self.settings.min_dynamic_patch, limit),
            "max_num": limit,
            "image_size": self.settings.image_size,
            "use_thumbnail": self.settings.use_thumbnail and self.settings.dynamic_image_size,
        }

    def path(self, spec: DatasetSpec, name: str, where: str) -> Path:
        """Return the path of a row's image or video."""
        return media_path(spec.root, name, where, allow_outside_root=self.settings.allow_outside_root)

    def choose_frames(self, row: Row, item: tuple[int, int], info: VideoInfo) -> list[int]:
        """Return which frames of a row's video are used.

        Their number is drawn between min_num_frame and max_num_frame, as in the original. Draws depend on the seed and
        the row alone, so that a row's length is known before it is read, and is the same in every process.
        """
        settings, random_state = self.settings, np.random.RandomState([self.seed, *item])
        start, length = choose_clip(row.clip, info, row.video, row.where)
        chosen = choose_frames(
            int(random_state.randint(settings.min_num_frame, settings.max_num_frame + 1)),
            length,
            sample=settings.sampling_method,
            input_fps=info.frames_per_second,
            times=None if info.has_constant_rate else info.times[start : start + length] - info.times[start],
            max_num_frames=settings.max_num_frame,
            chance=random.Random(int(random_state.randint(2**31))),
            permutation=random_state.permutation,
        )
        if not chosen:
            what = f"the video {row.video!r} is too short for {settings.sampling_method}"
            raise RowError(row.where, "short video", what, "Choose another --sampling_method or remove the row")
        return self.drop_frames(row, [start + index for index in chosen])

    def drop_frames(self, row: Row, indices: list[int]) -> list[int]:
        """Return a video's frames, of which "fewer_tiles" keeps as many, evenly spread, as there is room for."""
        count = len(indices)
        while self.settings.on_long_sample == "fewer_tiles" and count > 1:
            text_tokens = self.count_text_tokens([place_frames(row.turns, count)])[0]
            over = text_tokens + count * self.settings.num_image_token - self.settings.max_seq_length
            if over <= 0:
                break
            # A frame takes some text, too, so this never drops one too many.
            count -= max(1, min(count - 1, over // (self.settings.num_image_token + FRAME_TEXT_TOKENS)))
        return [indices[position] for position in np.linspace(0, len(indices) - 1, count, dtype=int)]

    def choose_tile_limit(
        self, spec: DatasetSpec, row: Row, sizes: list[tuple[int, int]], text_tokens: int | None = None
    ) -> int:
        """Return the most tiles an image of this row gets: fewer than usual if "fewer_tiles" makes a long row fit.

        ``sizes`` are its images' in px; ``text_tokens`` its length without image tokens, if known.
        """
        limit = self.tile_limit(spec, row)
        if self.settings.on_long_sample != "fewer_tiles" or limit == 1:
            return limit
        if text_tokens is None:
            text_tokens = self.count_text_tokens([list(row.turns)])[0]
        room = (self.settings.max_seq_length - text_tokens) // self.settings.num_image_token
        while limit > 1 and sum(self.count_tiles(size, limit) for size in sizes) > room:
            limit -= 1
        return limit

    def count_tiles(self, size: tuple[int, int], limit: int) -> int:
        """Return the number of tiles of an image of (width, height) px."""
        return count_tiles(*size, **self.tiling(limit))

    def count_text_tokens(self, conversations: list[list[Turn]]) -> list[int]:
        """Return the number of tokens of conversations without their image tokens."""
        return count_text_tokens(conversations, tokenizer=self.tokenizer, template=self.settings.template)

    def render(self, row: Row, turns: list[Turn], num_tiles: list[int]) -> Sample:
        """Return ids and labels of ``turns`` whose images have ``num_tiles`` tiles, cut to max_seq_length.

        Raises:
            LongRowError: it is longer, and on_long_sample is "skip".
            RowError: it is longer, and may not or cannot be cut.
        """
        sample = render_sample(
            turns,
            num_tiles,
            tokenizer=self.tokenizer,
            template=self.settings.template,
            num_image_token=self.settings.num_image_token,
        )
        length, limit = len(sample.input_ids), self.settings.max_seq_length
        if length > limit and self.settings.on_long_sample in ("skip", "error"):
            error = LongRowError if self.settings.on_long_sample == "skip" else RowError
            what = f"takes {length} tokens and max_seq_length is {limit}"
            raise error(row.where, "longer than max_seq_length", what, TOO_LONG_ADVICE)
        return truncate_sample(sample, limit, image_token_id=self.image_token_id, where=row.where)

    def keep(self, kept: np.ndarray) -> None:
        """Leave items out of the epoch: those for which ``kept``, bool (items,), is False."""
        self.index = self.index[kept]

    def __getitem__(self, unit: int | Unit) -> dict | list[BadSample] | None:
        """Return a row (an item's number), or the rows of a unit of an epoch in one sequence; None of an empty one."""
        if not isinstance(unit, Unit):
            unit = Unit((int(unit),), 0)
        if not unit.items:
            return None
        items = [(int(number), int(position)) for number, position in self.index[list(unit.items)]]
        try:
            return self._sample(items, unit.epoch)
        except UserError as err:
            if self.on_bad_sample == "error":
                raise
            # What a unit shares is its image, so if one row is unreadable, all are.
            return [BadSample(self.files[number][1].where(position), str(err)) for number, position in items]

    def _sample(self, items: list[tuple[int, int]], epoch: int) -> dict:
        """Return the sample of rows that share their images."""
        number, position = items[0]
        spec = self.files[number][0]
        rows = [self.files[number][1].row(position) for number, position in items]
        conversations = [list(row.turns) for row in rows]
        if rows[0].video:
            path = self.path(spec, rows[0].video, rows[0].where)
            frames = read_video(path, lambda info: self.choose_frames(rows[0], items[0], info), rows[0].where)
            conversations = [place_frames(turns, len(frames)) for turns in conversations]
            images = [self.cut(frame, 1) for frame in frames]
        else:
            # An image differs from epoch to epoch if it is augmented, and is the same in a run that was resumed.
            chance = random.Random(repr((self.seed, epoch, items[0]))) if spec.data_augment else None
            images = self.read_images(spec, rows[0], chance)
        num_tiles = [len(image) for image in images]
        samples = [self.render(row, turns, num_tiles) for row, turns in zip(rows, conversations, strict=True)]
        shared = share_prefix(samples)
        return {
            "input_ids": torch.tensor(shared.input_ids),
            "labels": torch.tensor(shared.labels),
            "group": (shared.prefix, shared.continuations),
            "images": images,
            "where": [row.where for row in rows],
        }

    def read_images(self, spec: DatasetSpec, row: Row, chance: random.Random | None) -> list[TiledImage]:
        """Return a row's images, cut into tiles, or their features where they are kept.

        ``chance`` draws the quality of augmented ones, which are not kept.
        """
        paths = [self.path(spec, name, row.where) for name in row.images]
        if (self.vision_cache is None or chance is not None) and not self.settings.draft_decoding:
            images = [read_image(path, row.where) for path in paths]
            limit = self.choose_tile_limit(spec, row, [image.size for image in images])
            return [self.cut(image, limit, chance) for image in images]
        sizes = [read_image_size(path, row.where) for path in paths]
        limit = self.choose_tile_limit(spec, row, sizes)
        return [self.read_one(path, size, limit, chance, row.where) for path, size in zip(paths, sizes, strict=True)]

    def read_one(
        self, path: Path, size: tuple[int, int], limit: int, chance: random.Random | None, where: str
    ) -> TiledImage:
        """Return an image of (width, height) px as far as it must be read."""
        key, tiling = None, self.tiling(limit)
        if self.vision_cache is not None and chance is None:
            how = {**tiling, "square": self.pads_to_square}
            # Without the flag the name is that of an evaluation, which decodes images whole.
            key = self.vision_cache.key(
                path.read_bytes(), how | ({"draft": True} if self.settings.draft_decoding else {})
            )
            features = self.vision_cache.load(key)
            if features is not None:
                return TiledImage(features=features, key=key)
        least_size = None
        if self.settings.draft_decoding and not self.pads_to_square:
            grid = choose_grid(*size, tiling["min_num"], limit, self.settings.image_size)
            least_size = tuple(side * self.settings.image_size for side in grid)
        image = read_image(path, where, least_size=least_size)
        return replace(self.cut(image, limit, chance, size), key=key)

    @property
    def pads_to_square(self) -> bool:
        """Whether images are padded: as in the original, not with tiles (and not when augmented)."""
        return self.settings.pad2square and not self.settings.dynamic_image_size

    def cut(
        self,
        image: Image.Image,
        limit: int,
        chance: random.Random | None = None,
        size: tuple[int, int] | None = None,
    ) -> TiledImage:
        """Return an image's tiles, ``limit`` at most, as bytes; ``chance`` re-encodes them as JPEG.

        ``size`` is its (width, height) in px if it was decoded smaller than it is.
        """
        if self.pads_to_square and chance is None:
            image, size = expand_to_square(image), None
        tiles = split_into_tiles(image, **self.tiling(limit), size=size)
        if chance is not None:
            tiles = [degrade_jpeg(tile, chance.choice(JPEG_QUALITIES)) for tile in tiles]
        return TiledImage(tiles=stack_tiles(tiles, self.settings.image_size))
