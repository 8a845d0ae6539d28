"""Rows that start with the same image as one sequence: what they have in common once, then what each has alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np

from internvl.data.annotation import Row
from internvl.data.tokenize import RenderedRow
from internvl.model.internvl_chat.causal_lm import IGNORE_INDEX
from internvl.model.internvl_chat.conversation import IMAGE_PLACEHOLDER
from internvl.model.internvl_chat.sequence_layout import PrefixTree

MIN_SAVED_TOKENS = 32


class SharedRows(NamedTuple):
    """Ids and labels of several rows in one sequence, and its group as ``SequenceLayout`` describes it.

    ``weights`` are as :class:`RenderedRow` has them, () where every supervised token counts 1. ``images`` are those of
    the sequence in their order, by the numbers that :func:`share_prefixes` was given; one that two branches have is
    there twice.
    """

    input_ids: list[int]
    labels: list[int]
    tree: PrefixTree
    weights: Sequence[float] = ()
    images: Sequence[int] = ()


class ImageSpan(NamedTuple):
    """An image of a rendered row: its number, equal where images and their tiles are, and its image tokens."""

    number: int
    num_tokens: int


def shared_parts(row: Row) -> list[tuple]:
    """Return, for each image of a row, what other rows must have in common with it to share its tokens up to there.

    That is the images up to that one and all text before it, earlier answers included. Frames of a video are drawn for
    each row, so they are not shared.
    """
    if row.video:
        return []
    parts: list[tuple] = []
    before: list[tuple[str, str]] = []
    for turn in row.turns:
        texts = turn.value.split(IMAGE_PLACEHOLDER) if turn.role == "human" else [turn.value]
        for number in range(1, len(texts)):
            text = IMAGE_PLACEHOLDER.join(texts[:number])
            parts.append((row.images[: len(parts) + 1], tuple(before), text))
        before.append((turn.role, turn.value))
    return parts


class _Row(NamedTuple):
    """A rendered row for comparisons with others; all int64 or float64 (N,).

    ``contents`` are its ids, with other numbers for the tokens of its images; ``starts`` where each image starts.
    """

    ids: np.ndarray
    contents: np.ndarray
    supervised: np.ndarray
    weights: np.ndarray
    images: tuple[ImageSpan, ...]
    starts: np.ndarray

    @classmethod
    def of(cls, row: RenderedRow, images: Sequence[ImageSpan], image_token_id: int | None) -> "_Row":
        ids, labels = np.array(row.input_ids), np.array(row.labels)
        supervised = labels != IGNORE_INDEX
        contents, starts = ids, np.empty(0, np.int64)
        if images:
            counts = [image.num_tokens for image in images]
            places = np.flatnonzero(ids == image_token_id)
            contents = ids.copy()
            contents[places] = np.repeat([-1 - image.number for image in images], counts)
            starts = places[np.cumsum([0, *counts[:-1]])]
        weights = np.array(row.weights) if row.weights else supervised.astype(np.float64)
        return cls(ids, contents, supervised, weights, tuple(images), starts)

    def images_between(self, start: int, end: int) -> list[int]:
        """Return the numbers of the images whose tokens start in a part of the row."""
        first, last = np.searchsorted(self.starts, [start, end])
        return [image.number for image in self.images[first:last]]


def share_prefixes(
    rows: Sequence[RenderedRow], images: Sequence[Sequence[ImageSpan]] = (), image_token_id: int | None = None
) -> SharedRows:
    """Put the rows of a group into one sequence, in which what several begin with is there once.

    Rows part at a token that none of them supervises: their state at the token before is the same, whatever follows.
    Where they part inside an answer, that is the last token before the answer, with which every branch then starts, so
    that the state which predicts an answer's first token is the branch's own and labels are shifted by one inside it
    as in any row. A supervised token that several rows share counts what it counts in all of them together.

    Args:
        rows: that start alike, at least with one token.
        images: those of each row; none for rows without or with the same images.
        image_token_id: id of ``<IMG_CONTEXT>``, where there are images.

    Raises:
        ValueError: the rows have no token in common to start with.
    """
    spans = images or [()] * len(rows)
    if len(rows) == 1:
        row = rows[0]
        numbers = [image.number for image in spans[0]]
        return SharedRows(row.input_ids, row.labels, (len(row.input_ids), ()), row.weights, numbers)
    parts = [_Row.of(row, own, image_token_id) for row, own in zip(rows, spans, strict=True)]
    roots = _divide(parts, range(len(rows)), 0)
    if len(roots) != 1:
        raise ValueError("The rows of a group start with different tokens, so they cannot be put into one sequence.")
    pieces = list(roots[0].walk())
    ids = np.concatenate([parts[piece.members[0]].ids[piece.start : piece.end] for piece in pieces])
    columns = [[parts[member] for member in piece.members] for piece in pieces]
    supervised = np.concatenate(
        [
            np.logical_or.reduce([row.supervised[piece.start : piece.end] for row in own])
            for piece, own in zip(pieces, columns, strict=True)
        ]
    )
    weights = np.concatenate(
        [
            np.sum([row.weights[piece.start : piece.end] for row in own], axis=0)
            for piece, own in zip(pieces, columns, strict=True)
        ]
    )
    return SharedRows(
        ids.tolist(),
        np.where(supervised, ids, IGNORE_INDEX).tolist(),
        (roots[0].num_tokens, roots[0].branch_trees),
        weights.tolist() if (weights != supervised).any() else (),
        [number for piece in pieces for number in parts[piece.members[0]].images_between(piece.start, piece.end)],
    )


class _Piece(NamedTuple):
    """Tokens ``start`` to ``end`` that some rows have in common, and how these go on: first their ends."""

    members: tuple[int, ...]
    start: int
    end: int
    branches: tuple["_Piece", ...] = ()

    @property
    def num_tokens(self) -> int:
        return self.end - self.start

    @property
    def branch_trees(self) -> tuple[int | PrefixTree, ...]:
        return tuple(
            (branch.num_tokens, branch.branch_trees) if branch.branches else branch.num_tokens
            for branch in self.branches
        )

    def walk(self) -> Iterator["_Piece"]:
        """Yield this piece and those below it in the order of the sequence."""
        yield self
        for branch in self.branches:
            yield from branch.walk()


def _divide(rows: Sequence[_Row], members: Sequence[int], start: int) -> list[_Piece]:
    """Return what is left of some rows from token ``start`` on, as trees: one where they have more in common."""
    own = [rows[member] for member in members]
    if len(own) == 1:
        return [_Piece(tuple(members), start, len(own[0].ids))] if len(own[0].ids) > start else []
    parting = _common_length([row.contents for row in own], start)
    fork = parting
    while fork > start and any(row.supervised[fork : fork + 1].any() for row in own):
        fork -= 1
    # A prefix takes calls of its own in every layer; below the root, it must save an image or some tokens for that.
    saved = (fork - start) * (len(own) - 1)
    is_prefix = fork > start and (start == 0 or saved >= MIN_SAVED_TOKENS or bool(own[0].images_between(start, fork)))
    branch_start = fork if is_prefix else start
    alike: dict[tuple[int, int], list[int]] = {}  # rows that go on with the same token; each that ends is alone
    for member, row in zip(members, own, strict=True):
        goes_on = len(row.contents) > parting
        alike.setdefault((0, row.contents[parting]) if goes_on else (1, member), []).append(member)
    branches = [piece for group in alike.values() for piece in _divide(rows, group, branch_start)]
    branches.sort(key=lambda piece: (bool(piece.branches), piece.members))
    return [_Piece(tuple(members), start, fork, tuple(branches))] if is_prefix else branches


def _common_length(contents: Sequence[np.ndarray], start: int) -> int:
    """Return how many tokens rows begin with alike; the first ``start`` are known to be."""
    shortest = min(map(len, contents))
    first = contents[0][start:shortest]
    differs = np.zeros(len(first), bool)
    for other in contents[1:]:
        differs |= other[start:shortest] != first
    return start + int(differs.argmax()) if differs.any() else shortest


class Groups(Sequence[tuple[int, ...]]):
    """Groups of items, as two arrays that millions of them fit into and that processes share.

    ``items`` are the numbers of the items of all groups, int64 (items,), and group n has those from ``offsets[n]`` to
    ``offsets[n + 1]``, int64 (groups + 1,).
    """

    def __init__(self, offsets: np.ndarray, items: np.ndarray):
        self.offsets = offsets
        self.items = items

    @classmethod
    def of(cls, groups: Sequence[tuple[int, ...]]) -> "Groups":
        """Return the groups of a list."""
        if isinstance(groups, cls):
            return groups
        sizes = np.fromiter(map(len, groups), np.int64, len(groups))
        items = np.fromiter(chain.from_iterable(groups), np.int64, int(sizes.sum()))
        return cls(np.append(0, sizes.cumsum()), items)

    @property
    def sizes(self) -> np.ndarray:
        """Number of items of each group, int64 (groups,)."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self[index] for index in range(*number.indices(len(self)))]
        return tuple(self.items[self.offsets[number] : self.offsets[number + 1]].tolist())


@dataclass(frozen=True)
class EpochGroups:
    """What an epoch consists of: groups of items, and the tokens of each group, int64 (groups,)."""

    groups: Groups
    num_tokens: np.ndarray


def single_rows(lengths: Sequence[int] | np.ndarray) -> EpochGroups:
    """Return every item as a group of its own; ``lengths`` are their tokens."""
    return EpochGroups(Groups(np.arange(len(lengths) + 1), np.arange(len(lengths))), np.asarray(lengths))


IMAGE_LINK = np.dtype([("hash", "u8"), ("image_tokens", "i4")])


class ImageLinks(NamedTuple):
    """How far items with several images may share them: ``table`` (links,) has an :data:`IMAGE_LINK` for each image.

    An item has ``counts`` entries from ``starts`` on, both int64 (items,); none if it has one image or none. Items
    with equal hashes share the image tokens up to that image.
    """

    starts: np.ndarray
    counts: np.ndarray
    table: np.ndarray

    def of(self, item: int) -> list[tuple[int, int]]:
        """Return (hash, image tokens) of each image of an item."""
        return self.table[self.starts[item] : self.starts[item] + self.counts[item]].tolist()


def group_rows(
    keys: np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    image_tokens: np.ndarray,
    *,
    max_rows: int,
    max_tokens: int,
    links: ImageLinks | None = None,
) -> EpochGroups:
    """Put items that may share into groups, which are numbered in the order of their first items.

    Args:
        keys: (items,), equal for items that may share; 0 for one that may not.
        lengths: (items,), tokens of each item alone.
        image_tokens: (items,), those of them that are image tokens. Rows share these as far as their images are the
            same, and the tokens of a group are counted as if it shared no more.
        max_rows: most items of a group.
        max_tokens: most tokens of a group of several.
        links: how far items with several images share them; without, items with the same key share all of them.
    """
    sizes: list[int] = []
    num_tokens: list[int] = []
    owners = np.empty(len(keys), np.int64)  # the group of each item
    latest: dict[int, int] = {}  # key → number of its group that still takes items
    met: dict[int, set[int]] = {}  # key → hashes of the links in that group
    with_links = np.zeros(len(keys), bool) if links is None else links.counts > 0
    columns = zip(keys.tolist(), np.asarray(lengths).tolist(), image_tokens.tolist(), with_links.tolist(), strict=True)
    for item, (key, length, shared, has_links) in enumerate(columns):
        number = latest.get(key) if key else None
        own = links.of(item) if links is not None and has_links and key else []
        if own and number is not None:
            known = met.get(key, ())
            shared = next((tokens for hash_, tokens in reversed(own) if hash_ in known), own[0][1])
        if number is not None and sizes[number] < max_rows and num_tokens[number] + length - shared <= max_tokens:
            sizes[number] += 1
            num_tokens[number] += length - shared
        else:
            number = latest[key] = len(sizes)
            sizes.append(1)
            num_tokens.append(length)
            met.pop(key, None)
        if own:
            met.setdefault(key, set()).update(hash_ for hash_, _ in own)
        owners[item] = number
    offsets = np.append(0, np.cumsum(np.array(sizes, np.int64)))
    return EpochGroups(Groups(offsets, np.argsort(owners, kind="stable")), np.array(num_tokens, np.int64))


def sharing_keys(index: np.ndarray, row_stats: np.ndarray, sets: np.ndarray, may_share: np.ndarray) -> np.ndarray:
    """Return one number for each item, equal where items may share their first image's tokens, 0 where one may not.

    Args:
        index: int64 (items, 2), file and row of each item. An item that is in the epoch more than once is in another
            group each time, or its group would be the same caption again and again.
        row_stats: (items,), as ``DatasetCheck`` has them; its "shared" is equal where the first image is.
        sets: (items,), the number of each item's data set.
        may_share: bool (items,), False where an item must stay alone.
    """
    columns = (row_stats["shared"].astype(np.int64), sets, _occurrences(index))
    order = np.lexsort(columns)
    changes = np.zeros(len(index), bool)
    for column in columns:
        changes[1:] |= column[order[1:]] != column[order[:-1]]
    keys = np.empty(len(index), np.int64)
    keys[order] = changes.cumsum() + 1
    return np.where(may_share & (row_stats["shared"] != 0), keys, 0)


def _occurrences(index: np.ndarray) -> np.ndarray:
    """Return how often each item's row has come before in the epoch, int64 (items,)."""
    rows = index[:, 0] * (index[:, 1].max(initial=0) + 1) + index[:, 1]
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(rows) else np.empty(0, np.int64)
    occurrence = np.empty(len(rows), np.int64)
    occurrence[order] = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
    return occurrence
