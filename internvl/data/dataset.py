"""The training set: meta file → mixed rows → samples of ids, labels and pixel values.

Axis letters: N tokens, T tiles, S tile side in pixels.
"""

import logging
import random
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from internvl.data.annotation import AnnotationFile, Row
from internvl.data.batch import BadSample, Idle, Sample, SampleResult
from internvl.data.grouping import ImageSpan, share_prefixes
from internvl.data.images import ImageReader
from internvl.data.media import choose_clip, media_path, read_image_size, read_video
from internvl.data.meta import DatasetSpec
from internvl.data.problems import LongRowError, RowError
from internvl.data.sampling import SampleGroup
from internvl.data.tokenize import (
    TOO_LONG_ADVICE,
    RenderedRow,
    RenderSettings,
    count_text_tokens,
    render_row,
    truncate_row,
)
from internvl.data.video import VideoInfo, choose_frames, place_frames
from internvl.errors import UserError
from internvl.model.internvl_chat.conversation import IMG_CONTEXT_TOKEN, Turn
from internvl.model.vision_cache import TiledImage, VisionCache

logger = logging.getLogger(__name__)

# No tokenizer needs more for the text of one frame, "Frame32: <img></img>\n".
FRAME_TEXT_TOKENS = 16


class ConversationDataset(Dataset):
    """Rows of all data sets of a meta file, mixed by ``repeat_time``, as training samples.

    An item is a :class:`Sample`: one row, or those of a :class:`SampleGroup`.
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
        self.images = ImageReader(settings.tiling, cache=vision_cache, draft_decoding=settings.draft_decoding)
        self.specs = specs
        self.tokenizer = tokenizer
        self.settings = settings
        self.seed = seed
        self.on_bad_sample = on_bad_sample
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
        # (spec, file) of every annotation file, and for each item of the epoch the file and the row in it.
        self.files = [(spec, AnnotationFile(path)) for spec in specs for path in spec.annotations]
        self.index = self._mix()
        # Of each balanced data set, what answers of each kind are multiplied with; known once its rows were checked.
        self.factors: dict[str, dict[str, float]] = {}

    def _mix(self) -> np.ndarray:
        """Return int64 (items, 2): file number and row of each item of an epoch."""
        items = []
        for spec in self.specs:
            numbers = self.file_numbers(spec)
            counts = [len(self.files[number][1]) for number in numbers]
            rows = np.stack(
                [np.repeat(numbers, counts), np.concatenate([np.arange(count) for count in counts])], axis=1
            )
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
        """Return the most tiles one image of a row may have; a frame of a video is one tile."""
        return 1 if row.video else self.images.tiling.limit(len(row.images), spec.max_dynamic_patch)

    def path(self, spec: DatasetSpec, name: str, where: str) -> Path:
        """Return the path of a row's image or video."""
        return media_path(spec.root, name, where, allow_outside_root=self.settings.allow_outside_root)

    def choose_frames(self, row: Row, item: tuple[int, int], info: VideoInfo) -> list[int]:
        """Return which frames of a row's video are used.

        Their number is drawn between min_num_frame and max_num_frame, as in the original. Draws depend on the seed and
        the row alone, so that a row's length is known before it is read, and is the same in every process.

        Raises:
            RowError: the row's clip starts behind the video's end, or the video is too short for the sampling method.
        """
        settings, random_state = self.settings, np.random.RandomState([self.seed, *item])
        start, length = choose_clip(row.clip, info, row.video or "", row.where)
        chosen = choose_frames(
            int(random_state.randint(settings.min_num_frame, settings.max_num_frame + 1)),
            length,
            sample=settings.sampling_method,
            input_fps=info.frames_per_second,
            times=None if info.has_constant_rate else info.times[start : start + length] - info.times[start],
            max_num_frames=settings.max_num_frame,
            rng=random.Random(int(random_state.randint(2**31))),
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

        Args:
            spec: the row's data set.
            row: as read from its file.
            sizes: (width, height) of its images in px; used with "fewer_tiles" alone.
            text_tokens: the row's length without image tokens; None to count them.
        """
        limit = self.tile_limit(spec, row)
        if self.settings.on_long_sample != "fewer_tiles" or limit == 1:
            return limit
        if text_tokens is None:
            text_tokens = self.count_text_tokens([list(row.turns)])[0]
        room = (self.settings.max_seq_length - text_tokens) // self.settings.num_image_token
        while limit > 1 and sum(self.images.tiling.num_tiles(size, limit) for size in sizes) > room:
            limit -= 1
        return limit

    def count_text_tokens(self, conversations: list[list[Turn]]) -> list[int]:
        """Return the number of tokens of conversations without their image tokens."""
        return count_text_tokens(conversations, tokenizer=self.tokenizer, template=self.settings.template)

    def render(
        self, row: Row, turns: list[Turn], num_tiles: list[int], weights: tuple[float, ...] | None = None
    ) -> RenderedRow:
        """Return ids and labels of a conversation, cut to max_seq_length.

        Args:
            row: as read from its file.
            turns: its turns, with frames of a video placed.
            num_tiles: tiles of each of its images.
            weights: what each answer counts, () for 1; by default as the row says.

        Raises:
            LongRowError: it is longer, and on_long_sample is "skip".
            RowError: it is longer, and may not or cannot be cut.
        """
        rendered = render_row(
            turns,
            num_tiles,
            tokenizer=self.tokenizer,
            template=self.settings.template,
            num_image_token=self.settings.num_image_token,
            answer_weights=row.weights if weights is None else weights,
        )
        length, limit = len(rendered.input_ids), self.settings.max_seq_length
        if length > limit and self.settings.on_long_sample in ("skip", "error"):
            error = LongRowError if self.settings.on_long_sample == "skip" else RowError
            what = f"takes {length} tokens and max_seq_length is {limit}"
            raise error(row.where, "longer than max_seq_length", what, TOO_LONG_ADVICE)
        return truncate_row(rendered, limit, image_token_id=self.image_token_id, where=row.where)

    def filter(self, kept: np.ndarray) -> None:
        """Leave items out of the epoch: those for which ``kept``, bool (items,), is False."""
        self.index = self.index[kept]

    def balance(self, kinds: dict[str, dict[str, float]]) -> None:
        """Let kinds of answers count as the meta file's ``balance`` says, by weights or by repeated items.

        ``kinds`` are the weights of all answers of each kind, "" for those without one, which stay as they are; by
        data set, as the check has counted them.

        Raises:
            UserError: kinds and targets do not fit.
        """
        repeats = np.ones(len(self.index), np.int64)
        for spec in self.specs:
            if not spec.balance:
                continue
            factors = spec.balance.factors(kinds[spec.name], f"{spec.place}.balance")
            if spec.balance.by == "weight":
                self.factors[spec.name] = factors
                continue
            items = np.flatnonzero(np.isin(self.index[:, 0], self.file_numbers(spec)))
            rows, places = np.unique(self.index[items], axis=0, return_inverse=True)
            answers = (self.files[number][1].row(position).turns[-1].value for number, position in rows)
            of_rows = np.array([factors.get(spec.balance.kind(answer) or "", 1.0) for answer in answers])
            of_items = of_rows[places.reshape(-1)]
            drawn = np.random.default_rng([self.seed, len(items)]).random(len(items)) < of_items % 1
            repeats[items] = of_items.astype(np.int64) + drawn
        self.index = np.repeat(self.index, repeats, axis=0)

    def answer_weights(self, spec: DatasetSpec, row: Row) -> tuple[float, ...]:
        """Return what each answer of a row counts, by its own weight and its data set's balance; () for 1."""
        factors = self.factors.get(spec.name)
        if factors is None or spec.balance is None:
            return row.weights
        answers = [turn.value for turn in row.turns if turn.role == "gpt"]
        weights = row.weights or (1.0,) * len(answers)
        kinds = (spec.balance.kind(answer) for answer in answers)
        return tuple(weight * factors.get(kind or "", 1.0) for weight, kind in zip(weights, kinds, strict=True))

    def __getitem__(self, group: int | SampleGroup) -> SampleResult:
        """Return a row (an item's number), or the rows of a group of an epoch in one sequence."""
        if not isinstance(group, SampleGroup):
            group = SampleGroup((int(group),), 0)
        if not group.items:
            return Idle()
        items = [(int(number), int(position)) for number, position in self.index[list(group.items)]]
        rows, bad = [], []
        images = _GroupImages(self.images)
        for item in items:
            try:
                rows.append(self._render_item(item, group.epoch, images))
            except UserError as err:
                if self.on_bad_sample == "error":
                    raise
                bad.append(BadSample(self.files[item[0]][1].where(item[1]), str(err)))
        if not rows:
            return bad
        shared = share_prefixes([row for row, _ in rows], [spans for _, spans in rows], self.image_token_id)
        skipped = {where for where, _ in bad}
        places = [self.files[number][1].where(position) for number, position in items]
        return Sample.of(
            shared,
            [images.images[number] for number in shared.images],
            [where for where in places if where not in skipped],
            skipped=bad,
        )

    def _render_item(
        self, item: tuple[int, int], epoch: int, images: "_GroupImages"
    ) -> tuple[RenderedRow, list[ImageSpan]]:
        """Return a row's ids and labels and which of its group's ``images`` it has; those not there yet are read."""
        number, position = item
        spec, row = self.files[number][0], self.files[number][1].row(position)
        turns = list(row.turns)
        if row.video:
            path = self.path(spec, row.video, row.where)
            frames = read_video(path, lambda info: self.choose_frames(row, item, info), row.where)
            turns = place_frames(turns, len(frames))
            own = [images.add(self.images.tile(frame, 1)) for frame in frames]
        else:
            # An image differs from epoch to epoch if it is augmented, and is the same in a run that was resumed.
            rng = random.Random(repr((self.seed, epoch, item))) if spec.data_augment else None
            paths = [self.path(spec, name, row.where) for name in row.images]
            needs_sizes = self.settings.on_long_sample == "fewer_tiles"
            sizes = [read_image_size(path, row.where) for path in paths] if needs_sizes else []
            limit = self.choose_tile_limit(spec, row, sizes)
            own = [images.number_of(path, limit, row.where, rng) for path in paths]
        num_tiles = [len(images.images[number]) for number in own]
        rendered = self.render(row, turns, num_tiles, self.answer_weights(spec, row))
        tokens = self.settings.num_image_token
        return rendered, [ImageSpan(number, tiles * tokens) for number, tiles in zip(own, num_tiles, strict=True)]


class _GroupImages:
    """The images of a group's rows, each read once."""

    def __init__(self, reader: ImageReader):
        self.reader = reader
        self.images: list[TiledImage] = []
        self._numbers: dict[Path, dict[int, int]] = {}  # path → tile limit → number

    def add(self, image: TiledImage) -> int:
        """Add an image that no other row has, and return its place in ``images``."""
        self.images.append(image)
        return len(self.images) - 1

    def number_of(self, path: Path, limit: int, where: str, rng: random.Random | None) -> int:
        """Return the place of a file's image in ``images``; arguments as of ``ImageReader.read``.

        As many tiles under another limit are the same tiles: of all grids, in the order of their tiles, the last one
        that fits best is chosen, so one that is chosen among more is chosen among fewer, too.
        """
        by_limit = self._numbers.setdefault(path, {})
        if limit not in by_limit:
            tiles = self.reader.tiling.num_tiles(read_image_size(path, where), limit) if by_limit else 0
            same = (number for number in by_limit.values() if len(self.images[number]) == tiles)
            known = next(same, None)
            by_limit[limit] = self.add(self.reader.read(path, limit, where, rng)) if known is None else known
        return by_limit[limit]
