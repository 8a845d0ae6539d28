"""Rows about the same image as one sequence: its tokens and the prompt once, then every row's own suffix."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from internvl.data.annotation import Row
from internvl.data.tokenize import RenderedRow
from internvl.model.internvl_chat.causal_lm import IGNORE_INDEX
from internvl.model.internvl_chat.conversation import IMAGE_PLACEHOLDER


class SharedRows(NamedTuple):
    """Ids and labels of several rows in one sequence, and its group as ``SequenceLayout`` describes it."""

    input_ids: list[int]
    labels: list[int]
    prefix: int
    suffixes: tuple[int, ...]


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
        return SharedRows(*rows[0], len(rows[0].input_ids), ())
    prompts = [next(n for n, label in enumerate(row.labels) if label != IGNORE_INDEX) for row in rows]
    shortest = min(prompts) - 1
    heads = np.array([row.input_ids[:shortest] for row in rows])
    differ = (heads != heads[0]).any(axis=0)
    prefix = int(differ.argmax()) if differ.any() else shortest
    input_ids, labels = list(rows[0].input_ids[:prefix]), list(rows[0].labels[:prefix])
    for row in rows:
        input_ids += row.input_ids[prefix:]
        labels += row.labels[prefix:]
    return SharedRows(input_ids, labels, prefix, tuple(len(row.input_ids) - prefix for row in rows))


@dataclass(frozen=True)
class EpochGroups:
    """What an epoch consists of: groups of items, each a tuple of item numbers, and the tokens of each group."""

    groups: list[tuple[int, ...]]
    num_tokens: list[int]


def single_rows(lengths: Sequence[int]) -> EpochGroups:
    """Return every item as a group of its own; ``lengths`` are their tokens."""
    return EpochGroups([(item,) for item in range(len(lengths))], list(lengths))


def group_rows(
    keys: np.ndarray, lengths: Sequence[int], image_tokens: np.ndarray, *, max_rows: int, max_tokens: int
) -> EpochGroups:
    """Put items that may share into groups.

    Args:
        keys: (items,), equal for items that may share; 0 for one that may not.
        lengths: (items,), tokens of each item alone.
        image_tokens: (items,), those of them that are image tokens. A group shares at least these, and its tokens are
            counted as if it shared no more.
        max_rows: most items of a group.
        max_tokens: most tokens of a group of several.
    """
    groups: list[list[int]] = []
    num_tokens: list[int] = []
    latest: dict[int, int] = {}  # key → number of its group that still takes items
    for item, (key, length, shared) in enumerate(zip(keys.tolist(), lengths, image_tokens.tolist(), strict=True)):
        number = latest.get(key) if key else None
        joins = number is not None and len(groups[number]) < max_rows
        if number is not None and joins and num_tokens[number] + length - shared <= max_tokens:
            groups[number].append(item)
            num_tokens[number] += length - shared
        else:
            latest[key] = len(groups)
            groups.append([item])
            num_tokens.append(length)
    return EpochGroups([tuple(group) for group in groups], num_tokens)


def sharing_keys(index: np.ndarray, row_stats: np.ndarray, sets: np.ndarray, may_share: np.ndarray) -> np.ndarray:
    """Return one number for each item, equal where items may share their images' tokens, 0 where one may not.

    Args:
        index: int64 (items, 2), file and row of each item. An item that is in the epoch more than once is in another
            group each time, or its group would be the same caption again and again.
        row_stats: (items,), as ``DatasetCheck`` has them.
        sets: (items,), the number of each item's data set.
        may_share: bool (items,), False where an item must stay alone.
    """
    _, first, item = np.unique(index, axis=0, return_index=True, return_inverse=True)
    occurrence = np.zeros(len(index), np.int64)
    if len(first) < len(index):
        seen = np.zeros(len(first), np.int64)
        for number, own in enumerate(item.ravel().tolist()):
            occurrence[number] = seen[own]
            seen[own] += 1
    columns = np.stack([row_stats["shared"].astype(np.int64), row_stats["tiles"], sets, occurrence], axis=1)
    _, keys = np.unique(columns, axis=0, return_inverse=True)
    return np.where(may_share & (row_stats["shared"] != 0), keys.ravel() + 1, 0)
