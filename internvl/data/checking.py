"""Check every row before anything trains: text completely, images and videos by their headers, on all cores."""

import hashlib
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from internvl.data.annotation import KINDS, Row
from internvl.data.balance import Balance, add_weights, weigh_kinds
from internvl.data.dataset import ConversationDataset
from internvl.data.grouping import IMAGE_LINK, ImageLinks, shared_parts
from internvl.data.media import count_frames, read_image, read_image_size, read_info, read_video
from internvl.data.problems import LeftOutError, LongRowError, RowError, ZeroWeightError
from internvl.data.video import place_frames
from internvl.distributed import count_cores
from internvl.errors import UserError
from internvl.model.internvl_chat.conversation import Turn
from internvl.progress import Progress

# What became of a row: it trains; it trains, cut to max_seq_length; it is left out for its length; it is an error; it
# is left out because no answer of it counts.
GOOD, CUT, LONG, BAD, UNWEIGHTED = range(5)
ROW_STATS = np.dtype(
    [
        ("kind", "u1"),  # index into KINDS
        ("status", "u1"),
        ("turns", "i4"),
        ("text_tokens", "i4"),
        ("image_tokens", "i4"),
        ("tiles", "i4"),
        ("content", "u8"),  # hash of turns and media, to find rows that are there twice
        ("weighted", "?"),  # whether an answer counts more or less than 1
        ("shared", "u8"),  # hash of what rows must have in common to share their first image's tokens; 0: none
        ("links", "i4"),  # entries of FileCheck.links, one an image; 0 for a row of one image or none
    ]
)
ROWS_PER_TASK = 500
# Starting processes takes longer than checking so few rows.
ROWS_FOR_PROCESSES = 4 * ROWS_PER_TASK


class Problem(NamedTuple):
    """A row that does not train; ``left_out`` where that is what the user asked for."""

    where: str
    reason: str
    message: str
    left_out: bool


class Look(NamedTuple):
    """What is known of an image: (width, height) in px, whether it is one plain colour, whether it is animated."""

    size: tuple[int, int]
    is_plain: bool = False
    is_animated: bool = False


@dataclass
class FileCheck:
    """What is known of an annotation file's rows: ``row_stats`` (rows,), and name → (bytes, mtime in ns) of its media.

    ``notes`` counts what is not used of the rows; ``kinds`` has the weight of all answers of each kind that the data
    set's balance tells apart, and "" that of answers without one; ``plain`` and ``animated`` are the names of images
    that are one plain colour, and that have several frames of which the first is used (both known where they were
    decoded). ``links`` (links,) are of the rows with several images, in their order: for each image the hash of what
    rows must have in common to share all tokens up to it, and the image tokens up to it.
    """

    row_stats: np.ndarray
    problems: list[Problem] = field(default_factory=list)
    media: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, float] = field(default_factory=dict)
    plain: set[str] = field(default_factory=set)
    animated: set[str] = field(default_factory=set)
    links: np.ndarray = field(default_factory=lambda: np.empty(0, IMAGE_LINK))

    def all_notes(self) -> Counter[str]:
        """Return what is not used, and how often."""
        images = Counter(
            {
                "images of one plain colour": len(self.plain),
                "images of several frames, the first used": len(self.animated),
            }
        )
        return self.notes + images


@dataclass
class DatasetCheck:
    """The checks of all files of a data set, in the order of ``ConversationDataset.files``."""

    files: list[FileCheck]
    max_seq_length: int

    @property
    def errors(self) -> list[Problem]:
        """The rows that must be put right."""
        return [problem for file in self.files for problem in file.problems if not problem.left_out]

    @property
    def left_out(self) -> list[Problem]:
        """The rows that are left out for their length or for a weight of 0."""
        return [problem for file in self.files for problem in file.problems if problem.left_out]

    def row_stats(self, index: np.ndarray) -> np.ndarray:
        """Return the facts of items; ``index`` is int64 (items, 2), file number and row."""
        return np.concatenate([file.row_stats for file in self.files])[self._rows(index)]

    def _rows(self, index: np.ndarray) -> np.ndarray:
        """Return the numbers of items among the rows of all files together, int64 (items,)."""
        starts = np.cumsum([0] + [len(file.row_stats) for file in self.files])
        return starts[index[:, 0]] + index[:, 1]

    def links(self, index: np.ndarray) -> ImageLinks:
        """Return the links of items with several images; ``index`` as of :meth:`row_stats`."""
        counts = np.concatenate([file.row_stats["links"] for file in self.files]).astype(np.int64)
        rows = self._rows(index)
        table = np.concatenate([file.links for file in self.files])
        return ImageLinks((counts.cumsum() - counts)[rows], counts[rows], table)

    def trains(self, index: np.ndarray) -> np.ndarray:
        """Return which items are not left out, bool (items,)."""
        return ~np.isin(self.row_stats(index)["status"], (LONG, UNWEIGHTED))

    def kinds(self, dataset: ConversationDataset) -> dict[str, dict[str, float]]:
        """Return the weight of all answers of each kind that a data set's balance tells apart, by data set."""
        found: dict[str, dict[str, float]] = {spec.name: {} for spec in dataset.specs if spec.balance}
        for (spec, _), file in zip(dataset.files, self.files, strict=True):
            if spec.balance:
                add_weights(found[spec.name], file.kinds)
        return found

    def lengths(self, index: np.ndarray) -> np.ndarray:
        """Return the number of tokens of items as they train, int64 (items,)."""
        row_stats = self.row_stats(index)
        return np.minimum(row_stats["text_tokens"] + row_stats["image_tokens"], self.max_seq_length).astype(np.int64)

    def raise_errors(self, advice: str) -> None:
        """Raise one error that shows the first errors of each kind, counts all and ends with ``advice``.

        Raises:
            UserError: there are errors.
        """
        errors = self.errors
        if errors:
            counts = Counter(problem.reason for problem in errors)
            lines = [problem.message for problem in first_of_each(errors)]
            summary = ", ".join(f"{reason}: {count:,}" for reason, count in counts.most_common())
            rows = sum(len(file.row_stats) for file in self.files)
            noun = "row" if len(errors) == 1 else "rows"
            lines.append(f"{len(errors):,} of {rows:,} {noun} cannot be trained on ({summary}). {advice}")
            raise UserError("\n".join(lines))


def first_of_each(problems: Sequence[Problem], limit: int = 10) -> list[Problem]:
    """Return up to ``limit`` problems in the order found, of as many reasons as possible; each text once."""
    seen, texts = Counter(), set()
    ranked = []
    for position, problem in enumerate(problems):
        text = problem.message.removeprefix(f"{problem.where}: ")
        if text in texts:
            continue
        texts.add(text)
        ranked.append((seen[problem.reason], position))
        seen[problem.reason] += 1
    return [problems[position] for position in sorted(position for _, position in sorted(ranked)[:limit])]


def check_dataset(
    dataset: ConversationDataset, *, deep: bool = False, processes: int | None = None, numbers: Sequence[int] = ()
) -> DatasetCheck:
    """Check the rows of a data set. Bad rows raise nothing: they are in the result.

    Args:
        dataset: the training set.
        deep: decode every image and video, too, instead of reading headers alone.
        processes: how many check at once; None for one per core.
        numbers: which of ``dataset.files`` to check; empty for all.
    """
    tasks, checks = [], [FileCheck(np.empty(0, ROW_STATS)) for _ in dataset.files]
    numbers = numbers or range(len(dataset.files))
    for number in numbers:
        rows = len(dataset.files[number][1])
        tasks += [(number, start, min(start + ROWS_PER_TASK, rows)) for start in range(0, rows, ROWS_PER_TASK)]
        checks[number].row_stats = np.empty(rows, ROW_STATS)
    total = sum(stop - start for _, start, stop in tasks)
    links: list[list[np.ndarray]] = [[check.links] for check in checks]
    with Progress(total=total, desc="Checking rows", unit=" rows", leave=False, delay=2) as progress:
        for (number, start, stop), part in zip(tasks, run(dataset, tasks, deep, processes), strict=True):
            check = checks[number]
            check.row_stats[start:stop] = part.row_stats
            check.problems += part.problems
            check.media |= part.media
            check.notes += part.notes
            add_weights(check.kinds, part.kinds)
            check.plain |= part.plain
            check.animated |= part.animated
            links[number].append(part.links)
            progress.update(stop - start)
    for check, of_file in zip(checks, links, strict=True):
        check.links = np.concatenate(of_file)
    return DatasetCheck(checks, dataset.settings.max_seq_length)


def run(
    dataset: ConversationDataset, tasks: list[tuple[int, int, int]], deep: bool, processes: int | None
) -> Iterator[FileCheck]:
    """Yield each task's result in order, from several processes when there is enough to do.

    Args:
        dataset: the training set.
        tasks: (file number, start, stop) each; the row ``stop`` is not part of the task.
        deep: decode every image and video, too.
        processes: how many check at once; None for one per core.
    """
    processes = processes or count_cores()
    rows = sum(stop - start for _, start, stop in tasks)
    # Forked processes share the annotation files; where there is no fork, one process does it.
    if (
        processes == 1
        or not (deep or rows > ROWS_FOR_PROCESSES)
        or "fork" not in multiprocessing.get_all_start_methods()
    ):
        yield from map(Checker(dataset, deep), tasks)
        return
    context = multiprocessing.get_context("fork")
    with context.Pool(processes, _start_worker, (dataset, deep)) as pool:
        yield from pool.imap(work, tasks)


_worker: "Checker"


def _start_worker(dataset: ConversationDataset, deep: bool) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process has one core
    _worker = Checker(dataset, deep)


def work(task: tuple[int, int, int]) -> FileCheck:
    """Return the check of a task's rows, in a worker process of :func:`run`."""
    return _worker(task)


class Checker:
    """Checks runs of rows; keeps what it has read of images and videos, which occur again."""

    def __init__(self, dataset: ConversationDataset, deep: bool = False):
        self.dataset = dataset
        self.deep = deep
        # What a reader said of a file, with the file's state; or the error.
        self.known: dict[Path, tuple[object, tuple[int, int]] | RowError] = {}

    def __call__(self, task: tuple[int, int, int]) -> FileCheck:
        """Check rows ``start`` to ``stop`` of a file; ``task`` is (file number, start, stop)."""
        number, start, stop = task
        spec, file = self.dataset.files[number]
        row_stats = np.zeros(stop - start, ROW_STATS)
        check = FileCheck(row_stats)
        readable: list[tuple[int, Row, list[Turn], list[tuple[int, int]]]] = []
        for position in range(start, stop):
            try:
                row = file.row(position)
                check.notes.update(row.notes)
                content = _stable_hash(row.turns, row.images, row.video, row.clip)
                kind, weighted = KINDS.index(row.kind), bool(row.weights)
                row_stats[position - start] = (kind, GOOD, len(row.turns), 0, 0, 0, content, weighted, 0, 0)
                if row.weights and not any(row.weights):
                    raise ZeroWeightError(row.where)
                readable.append((position - start, row, *self.read_headers(row, (number, position), check)))
            except RowError as err:
                self.note(check, position - start, err)
        self.measure(check, number, readable)
        if spec.balance:
            self.count_kinds(check, readable, spec.balance)
        check.problems.sort(key=lambda problem: int(problem.where.rsplit(":", 1)[1]))
        return check

    def read_headers(
        self, row: Row, item: tuple[int, int], check: FileCheck
    ) -> tuple[list[Turn], list[tuple[int, int]]]:
        """Return a row's turns, frames placed, and its images' (width, height) in px."""
        spec, _ = self.dataset.files[item[0]]
        if row.video:
            path = self.dataset.path(spec, row.video, row.where)
            info = self.look_up(path, row.video, row.where, check, read_info)
            frames = self.dataset.choose_frames(row, item, info)
            if self.deep:
                frames = read_video(path, lambda info: self.dataset.choose_frames(row, item, info), row.where)
            return place_frames(row.turns, len(frames)), [(1, 1)] * len(frames)
        sizes = []
        for name in row.images:
            path = self.dataset.path(spec, name, row.where)
            look = self.look_up(path, name, row.where, check, self.look_at)
            sizes.append(look.size)
            check.plain.update([name] if look.is_plain else [])
            check.animated.update([name] if look.is_animated else [])
        return list(row.turns), sizes

    def look_at(self, path: Path, where: str) -> Look:
        """Return what the check wants to know of an image; without ``deep`` from its header alone."""
        if not self.deep:
            return Look(read_image_size(path, where))
        image = read_image(path, where)
        is_plain = all(least == greatest for least, greatest in image.getextrema())
        return Look(image.size, is_plain, count_frames(path) > 1)

    def look_up(self, path: Path, name: str, where: str, check: FileCheck, reader):
        """Return what ``reader`` says of a file, which is asked once, however many rows name the file.

        Args:
            path: of the file.
            name: what the row calls it.
            where: the row's file and line, for messages.
            check: gets the file's size and modification time, by ``name``.
            reader: takes ``path`` and ``where``, and returns what is to be known.

        Raises:
            RowError: the file cannot be read; for each row that names it, with that row's place.
        """
        if path not in self.known:
            try:
                self.known[path] = reader(path, where), media_state(path)
            except RowError as err:
                self.known[path] = err
        found = self.known[path]
        if isinstance(found, RowError):
            # The same fault of another row: only the place differs.
            raise RowError(where, found.reason, str(found).removeprefix(f"{found.where}: "))
        value, check.media[name] = found
        return value

    def measure(self, check: FileCheck, number: int, readable: list) -> None:
        """Fill in tokens and tiles of rows that could be read; rows too long are cut, left out or errors."""
        dataset, row_stats = self.dataset, check.row_stats
        spec, _ = dataset.files[number]
        links: list[tuple[int, int]] = []
        texts = dataset.count_text_tokens([turns for _, _, turns, _ in readable])
        for (offset, row, turns, sizes), text_tokens in zip(readable, texts, strict=True):
            limit = dataset.choose_tile_limit(spec, row, sizes, text_tokens)
            tiles = [dataset.images.tiling.num_tiles(size, limit) for size in sizes]
            image_tokens = sum(tiles) * dataset.settings.num_image_token
            row_stats["text_tokens"][offset] = text_tokens
            row_stats["image_tokens"][offset] = image_tokens
            row_stats["tiles"][offset] = sum(tiles)
            own = [_stable_hash(part, tiles[: place + 1]) for place, part in enumerate(shared_parts(row))]
            row_stats["shared"][offset] = own[0] if own else 0
            if len(own) > 1:
                row_stats["links"][offset] = len(own)
                links += zip(own, np.cumsum(tiles) * dataset.settings.num_image_token, strict=True)
            if text_tokens + image_tokens > dataset.settings.max_seq_length:
                try:
                    dataset.render(row, turns, tiles)
                    row_stats["status"][offset] = CUT
                except RowError as err:
                    self.note(check, offset, err)
        check.links = np.array(links, IMAGE_LINK)

    def count_kinds(self, check: FileCheck, readable: list, balance: Balance) -> None:
        """Count the kinds of answers of the rows that train."""
        for offset, row, *_ in readable:
            if check.row_stats["status"][offset] in (GOOD, CUT):
                try:
                    add_weights(check.kinds, weigh_kinds(row, balance))
                except RowError as err:
                    self.note(check, offset, err)

    @staticmethod
    def note(check: FileCheck, offset: int, err: RowError) -> None:
        """Record a row that does not train: its status, and the error as a problem."""
        status = LONG if isinstance(err, LongRowError) else UNWEIGHTED if isinstance(err, ZeroWeightError) else BAD
        check.row_stats["status"][offset] = status
        check.problems.append(Problem(err.where, err.reason, str(err), isinstance(err, LeftOutError)))


def _stable_hash(*parts: object) -> int:
    """Return a hash that is the same in every process."""
    content = repr(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def media_state(path: Path) -> tuple[int, int]:
    """Return a file's size and modification time: what changes when it is replaced."""
    state = path.stat()
    return state.st_size, state.st_mtime_ns
