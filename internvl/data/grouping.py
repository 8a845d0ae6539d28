"""Rows about the same image as one sequence: its tokens and the prompt once, then every row's own suffix."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np

from internvl.data.annotation import Row
from internvl.data.tokenize import RenderedRow
from internvl.model.internvl_chat.causal_lm import IGNORE_INDEX
from internvl.model.internvl_chat.conversation import IMAGE_PLACEHOLDER


class SharedRows(NamedTuple):
    """Ids and labels of several rows in one sequence, and its group as ``SequenceLayout`` describes it.

    ``weights`` are as :class:`RenderedRow` has them, () where no row has any.
    """

    input_ids: list[int]
    labels: list[int]
    prefix: int
    suffixes: tuple[int, ...]
    weights: Sequence[float] = ()


def shared_part(row: Row) -> tuple:
    """Return what other rows must have in common with this one to share its image's tokens; () if it can share none.

    That is its images and all text up to the last of them. Only images of the first question are shared: behind an
    answer, an image's tokens depend on the answer. Frames of a video are drawn for each row, so they are not shared.
    """
    questions = [turn.value for turn in row.turns if turn.role == "human"]
    if not row.images or any(IMAGE_PLACEHOLDER in question for question in questions[1:]):
        return ()
    before = questions[0][: questions[0].rindex(IMAGE_PLACEHOLDER)]
    return row.images, [turn.value for turn in row.turns if turn.role == "system"], before


def share_prefix(rows: Sequence[RenderedRow]) -> SharedRows:
    """Put the rows of a group into one sequence.

    The prefix is what all have in common, but for the last token before the first answer: every suffix starts
    with that one, so that the state which predicts an answer's first token is the suffix's own, and labels are
    shifted by one inside it as in any row.
    """
    if len(rows) == 1:
        row = rows[0]
        return SharedRows(row.input_ids, row.labels, len(row.input_ids), (), row.weights)
    prompts = [next(n for n, label in enumerate(row.labels) if label != IGNORE_INDEX) for row in rows]
    shortest = min(prompts) - 1
    heads = np.array([row.input_ids[:shortest] for row in rows])
    differ = (heads != heads[0]).any(axis=0)
    prefix = int(differ.argmax()) if differ.any() else shortest
    input_ids, labels, weights = list(rows[0].input_ids[:prefix]), list(rows[0].labels[:prefix]), [0.0] * prefix
    for row in rows:
        input_ids += row.input_ids[prefix:]
        labels += row.labels[prefix:]
        weights += row.weights[prefix:] or [float(label != IGNORE_INDEX) for label in row.labels[prefix:]]
    suffixes = tuple(len(row.input_ids) - prefix for row in rows)
    return SharedRows(input_ids, labels, prefix, suffixes, weights if any(row.weights for row in rows) else ())


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


def group_rows(
    keys: np.ndarray, lengths: Sequence[int] | np.ndarray, image_tokens: np.ndarray, *, max_rows: int, max_tokens: int
) -> EpochGroups:
    """Put items that may share into groups, which are numbered in the order of their first items.

    Args:
        keys: (items,), equal for items that may share; 0 for one that may not.
        lengths: (items,), tokens of each item alone.
        image_tokens: (items,), those of them that are image tokens. A group shares at least these, and its tokens are
            counted as if it shared no more.
        max_rows: most items of a group.
        max_tokens: most tokens of a group of several.
    """
    sizes: list[int] = []
    num_tokens: list[int] = []
    owners = np.empty(len(keys), np.int64)  # the group of each item
    latest: dict[int, int] = {}  # key → number of its group that still takes items
    columns = zip(keys.tolist(), np.asarray(lengths).tolist(), image_tokens.tolist(), strict=True)
    for item, (key, length, shared) in enumerate(columns):
        number = latest.get(key) if key else None
        if number is not None and sizes[number] < max_rows and num_tokens[number] + length - shared <= max_tokens:
            sizes[number] += 1
            num_tokens[number] += length - shared
        else:
            number = latest[key] = len(sizes)
            sizes.append(1)
            num_tokens.append(length)
        owners[item] = number
    offsets = np.append(0, np.cumsum(np.array(sizes, np.int64)))
    return EpochGroups(Groups(offsets, np.argsort(owners, kind="stable")), np.array(num_tokens, np.int64))


def sharing_keys(index: np.ndarray, row_stats: np.ndarray, sets: np.ndarray, may_share: np.ndarray) -> np.ndarray:
    """Return one number for each item, equal where items may share their images' tokens, 0 where one may not.

    Args:
        index: int64 (items, 2), file and row of each item. An item that is in the epoch more than once is in another
            group each time, or its group would be the same caption again and again.
        row_stats: (items,), as ``DatasetCheck`` has them.
        sets: (items,), the number of each item's data set.
        may_share: bool (items,), False where an item must stay alone.
    """
    columns = (row_stats["shared"].astype(np.int64), row_stats["tiles"].astype(np.int64), sets, _occurrences(index))
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
