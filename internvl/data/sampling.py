"""The order of an epoch: which rows share an optimizer step, and which of them a rank takes at once.

A group is what is never divided: a row, or rows that share an image's tokens (``internvl.data.grouping``).
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import Sampler

from internvl.data.grouping import Groups

# Tokens of each group, by its number; of a step's groups only, where the epoch's are millions.
Tokens = Sequence[int] | Mapping[int, int]


class SampleGroup(NamedTuple):
    """A group in an epoch: the numbers of its rows in the data set. Without rows it is an idle place."""

    items: tuple[int, ...]
    epoch: int


class BatchingStrategy(Protocol):
    """How the groups of an optimizer step are split into micro-batches."""

    def assign(self, groups: list[int], num_tokens: Tokens, num_batches: int, world_size: int) -> list[list[int]]:
        """Return the groups of each micro-batch: at most ``num_batches``, in a multiple of ``world_size``.

        Args:
            groups: numbers of the step's groups, the longest first.
            num_tokens: tokens of each of them.
            num_batches: micro-batches of a step, over all ranks.
            world_size: number of ranks.
        """


class LengthBalanced:
    """As many rows in every micro-batch, and about as many tokens."""

    def assign(self, groups: list[int], num_tokens: Tokens, num_batches: int, world_size: int) -> list[list[int]]:
        """Return the groups of each micro-batch; arguments as of :class:`BatchingStrategy`."""
        return _assign_evenly(groups, num_tokens, num_batches)


class GroupBalanced:
    """About as many tokens in every micro-batch, and one group at least."""

    def assign(self, groups: list[int], num_tokens: Tokens, num_batches: int, world_size: int) -> list[list[int]]:
        """Return the groups of each micro-batch; arguments as of :class:`BatchingStrategy`."""
        return balance(groups, num_tokens, -(-min(len(groups), num_batches) // world_size) * world_size)


@dataclass(frozen=True)
class TokenBudget:
    """As few micro-batches as hold the groups (best fit, longest first); a longer group has one of its own."""

    max_tokens_per_batch: int

    def assign(self, groups: list[int], num_tokens: Tokens, num_batches: int, world_size: int) -> list[list[int]]:
        """Return the groups of each micro-batch; arguments as of :class:`BatchingStrategy`."""
        bins = _split_to_multiple(best_fit(groups, num_tokens, self.max_tokens_per_batch), world_size)
        return (
            bins if len(bins) <= num_batches else GroupBalanced().assign(groups, num_tokens, num_batches, world_size)
        )


def choose_strategy(groups: Sequence[tuple[int, ...]], max_tokens_per_batch: int | None) -> BatchingStrategy:
    """Return how an epoch's groups are split: by ``max_tokens_per_batch`` if it is given (``--packing``)."""
    if max_tokens_per_batch is not None:
        return TokenBudget(int(max_tokens_per_batch))
    return LengthBalanced() if (Groups.of(groups).sizes == 1).all() else GroupBalanced()


class MicroBatchSampler(Sampler[list[SampleGroup]]):
    """Yields the micro-batches of one rank: what it takes through the model at once.

    The shuffled groups are cut into optimizer steps of ``batch_size`` × ``num_batches`` rows, by the row each starts
    at, so an epoch has the same number of steps whatever shares. ``strategy`` splits a step into ``num_batches``
    micro-batches, of which ``rank`` takes every ``world_size``-th. Which rows share a step depends neither on how it
    is split nor on the number of ranks. No group is larger than a step, as ``group_rows`` makes them.

    Where fewer micro-batches are needed than there are, the first ones of a step are ``[SampleGroup((), epoch)]`` on
    every rank: idle. An empty list is a rank's own empty place beside others' rows: it must take part.
    """

    def __init__(
        self,
        groups: Sequence[tuple[int, ...]],
        num_tokens: Sequence[int] | np.ndarray,
        *,
        batch_size: int,
        num_batches: int,
        rank: int = 0,
        world_size: int = 1,
        strategy: BatchingStrategy | None = None,
        seed: int = 0,
    ):
        self.groups = Groups.of(groups)
        self.num_tokens = np.asarray(num_tokens)
        self.rows_per_step = batch_size * num_batches
        self.num_batches = num_batches
        self.rank = rank
        self.world_size = world_size
        self.strategy = strategy or choose_strategy(groups, None)
        self.num_rows = len(self.groups.items)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffle of ``epoch``."""
        self.epoch = epoch

    @property
    def num_steps(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.num_rows // self.rows_per_step)

    def __len__(self) -> int:
        return self.num_steps * (self.num_batches // self.world_size)

    def __iter__(self) -> Iterator[list[SampleGroup]]:
        for step in self.steps():
            for batches in _in_rounds(self.assign(step), self.num_batches, self.world_size):
                if not any(batches):
                    yield [SampleGroup((), self.epoch)]
                else:
                    yield [SampleGroup(self.groups[number], self.epoch) for number in batches[self.rank]]

    def steps(self) -> Iterator[np.ndarray]:
        """Yield the groups of each optimizer step of the epoch, shuffled, int64 (groups,)."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.groups), generator=generator).numpy()
        sizes = self.groups.sizes[order]
        step_of = (sizes.cumsum() - sizes) // self.rows_per_step
        bounds = np.searchsorted(step_of, np.arange(self.num_steps + 1))
        # A group that reaches into the last step may leave nothing that starts there.
        for last in range(self.num_steps - 1, 0, -1):
            if bounds[last] < bounds[last + 1]:
                break
            bounds[last] -= 1
        for start, end in itertools.pairwise(bounds.tolist()):
            yield order[start:end]

    def assign(self, step: np.ndarray) -> list[list[int]]:
        """Return a step's micro-batches over all ranks; a rank's follow each other ``world_size`` apart."""
        step = np.asarray(step)
        longest_first = step[np.argsort(-self.num_tokens[step], kind="stable")].tolist()
        own_tokens = dict(zip(longest_first, self.num_tokens[longest_first].tolist(), strict=True))
        return self.strategy.assign(longest_first, own_tokens, self.num_batches, self.world_size)


def _in_rounds(batches: list[list[int]], num_batches: int, world_size: int) -> Iterator[list[list[int]]]:
    """Yield a step's micro-batches in rounds of one a rank, those of nobody first: the last one has rows."""
    rounds = [batches[start : start + world_size] for start in range(0, len(batches), world_size)]
    empty = [[[]] * world_size for _ in range(num_batches // world_size - len(rounds))]
    yield from empty + sorted(rounds, key=any)


def group_by_length(
    lengths: Sequence[int], batch_size: int, num_batches: int, generator: torch.Generator
) -> list[int]:
    """Return all indices in the order of the original's length-grouped sampler, for comparison with it.

    Shuffled, cut into steps, and each step split by :func:`_assign_evenly`.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a micro-batch.
        num_batches: micro-batches of a step.
        generator: of the shuffle.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    step = batch_size * num_batches
    grouped = []
    for start in range(0, len(order), step):
        longest_first = sorted(order[start : start + step], key=lambda index: lengths[index], reverse=True)
        for batch in _assign_evenly(longest_first, lengths, num_batches):
            grouped += batch
    return grouped


def _assign_evenly(indices: list[int], lengths: Tokens, num_batches: int) -> list[list[int]]:
    """Assign indices, longest first, each to the batch with the fewest tokens that is not full.

    A number of indices that does not divide evenly (the end of an epoch) is cut into strides instead.
    """
    if len(indices) % num_batches:
        return [indices[start::num_batches] for start in range(num_batches)]
    return balance(indices, lengths, num_batches, most=len(indices) // num_batches)


def balance(indices: list[int], num_tokens: Tokens, num_batches: int, *, most: int | None = None) -> list[list[int]]:
    """Assign indices, each to the batch that is not full and has the fewest tokens.

    Args:
        indices: the longest first.
        num_tokens: tokens of each.
        num_batches: number of batches.
        most: indices of a full batch; None for no limit.
    """
    batches: list[list[int]] = [[] for _ in range(num_batches)]
    emptiest = [(0, number) for number in range(num_batches)]
    for index in indices:
        total, number = heappop(emptiest)
        batches[number].append(index)
        if len(batches[number]) != most:
            heappush(emptiest, (total + num_tokens[index], number))
    return batches


def best_fit(indices: list[int], num_tokens: Tokens, max_tokens: int) -> list[list[int]]:
    """Assign indices, the longest first, each to the fullest batch it fits into, or to a new one."""
    batches: list[list[int]] = []
    rooms: list[int] = []
    for index in indices:
        fitting = [number for number, room in enumerate(rooms) if num_tokens[index] <= room]
        if fitting:
            fullest = min(fitting, key=rooms.__getitem__)
        else:
            fullest = len(batches)
            batches.append([])
            rooms.append(max_tokens)
        batches[fullest].append(index)
        rooms[fullest] -= num_tokens[index]
    return batches


def _split_to_multiple(batches: list[list[int]], world_size: int) -> list[list[int]]:
    """Return a multiple of ``world_size`` batches: the fullest are halved; what cannot be is left empty."""
    batches = list(batches)
    while len(batches) % world_size:
        largest = max(range(len(batches)), key=lambda number: len(batches[number]))
        whole = batches[largest]
        batches[largest] = whole[::2]
        batches.append(whole[1::2])
    return batches
