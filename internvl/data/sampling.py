"""The order of an epoch: which rows share an optimizer step, and which of them a process takes at once.

A unit is what is never divided: a row, or a group of rows that share an image's tokens (``internvl.data.sharing``).
"""

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

import torch
from torch.utils.data import Sampler


class Unit(NamedTuple):
    """A unit in an epoch: the numbers of its rows in the data set. Without rows it is an empty place."""

    items: tuple[int, ...]
    epoch: int


class MicroBatchSampler(Sampler[list[Unit]]):
    """Yields the micro-batches of one process: what it takes through the model at once.

    The shuffled units are cut into optimizer steps of ``batch_size`` × ``num_batches`` rows, by the row each starts
    at, so an epoch has the same number of steps whatever shares. A step is dealt out to ``num_batches`` micro-batches,
    of which process ``rank`` of ``world`` takes every ``world``-th. Which rows share a step depends neither on how it
    is split nor on how it is dealt out:

    - rows: sorted by length and dealt so that every micro-batch has ``batch_size`` rows and about as many tokens;
    - groups (``capacity`` None): as many tokens in each, one group at least;
    - packed (``capacity`` tokens): best fit, longest first, into as few micro-batches as hold them; a group that is
      longer has one of its own.

    Where fewer are needed than there are, the first ones of a step are ``[Unit((), epoch)]`` on every process: nothing
    to do. An empty list is a process's own empty place beside others' rows: it must take part.
    """

    def __init__(
        self,
        units: Sequence[tuple[int, ...]],
        costs: Sequence[int],
        *,
        batch_size: int,
        num_batches: int,
        rank: int = 0,
        world: int = 1,
        capacity: int | None = None,
        seed: int = 0,
    ):
        self.units = units
        self.costs = costs
        self.rows_per_step = batch_size * num_batches
        self.num_batches = num_batches
        self.rank = rank
        self.world = world
        self.capacity = capacity
        self.num_rows = sum(len(unit) for unit in units)
        self.plain = capacity is None and self.num_rows == len(units)
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
        return self.num_steps * (self.num_batches // self.world)

    def __iter__(self) -> Iterator[list[Unit]]:
        for step in self.steps():
            for batches in in_rounds(self.deal(step), self.num_batches, self.world):
                if not any(batches):
                    yield [Unit((), self.epoch)]
                else:
                    yield [Unit(self.units[number], self.epoch) for number in batches[self.rank]]

    def steps(self) -> list[list[int]]:
        """Return the units of each optimizer step of the epoch, shuffled."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        steps: list[list[int]] = [[] for _ in range(self.num_steps)]
        start = 0
        for number in torch.randperm(len(self.units), generator=generator).tolist():
            steps[start // self.rows_per_step].append(number)
            start += len(self.units[number])
        # A group that reaches into the last step may leave nothing that starts there.
        for last in range(self.num_steps - 1, 0, -1):
            if not steps[last]:
                steps[last].append(steps[last - 1].pop())
        return steps

    def deal(self, step: list[int]) -> list[list[int]]:
        """Return a step's micro-batches over all processes; a process's follow each other ``world`` apart."""
        longest_first = sorted(step, key=lambda number: self.costs[number], reverse=True)
        if self.plain:
            return deal_evenly(longest_first, self.costs, self.num_batches)
        if self.capacity is not None:
            bins = split_to_multiple(best_fit(longest_first, self.costs, self.capacity), self.world)
            if len(bins) <= self.num_batches:
                return bins
        number = -(-min(len(step), self.num_batches) // self.world) * self.world
        return balance(longest_first, self.costs, number)


def in_rounds(batches: list[list[int]], num_batches: int, world: int) -> Iterator[list[list[int]]]:
    """Yield a step's micro-batches in rounds of one a process, those of nobody first: the last one has rows."""
    rounds = [batches[start : start + world] for start in range(0, len(batches), world)]
    empty = [[[]] * world for _ in range(num_batches // world - len(rounds))]
    yield from empty + sorted(rounds, key=any)


def group_by_length(
    lengths: Sequence[int], batch_size: int, num_batches: int, generator: torch.Generator
) -> list[int]:
    """Return all indices in the order of the original's length-grouped sampler, for comparison with it.

    Shuffled, cut into steps of ``batch_size`` × ``num_batches``, and each step dealt out by :func:`deal_evenly`.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    step = batch_size * num_batches
    grouped = []
    for start in range(0, len(order), step):
        longest_first = sorted(order[start : start + step], key=lambda index: lengths[index], reverse=True)
        for batch in deal_evenly(longest_first, lengths, num_batches):
            grouped += batch
    return grouped


def deal_evenly(indices: list[int], lengths: Sequence[int], num_batches: int) -> list[list[int]]:
    """Deal indices, longest first, each to the batch with the fewest tokens that is not full.

    A number of indices that does not divide evenly (the end of an epoch) is cut into strides instead.
    """
    if len(indices) % num_batches:
        return [indices[start::num_batches] for start in range(num_batches)]
    return balance(indices, lengths, num_batches, most=len(indices) // num_batches)


def balance(indices: list[int], costs: Sequence[int], num_batches: int, *, most: int | None = None) -> list[list[int]]:
    """Deal indices, the costliest first, each to the batch that costs least so far and holds fewer than ``most``."""
    batches: list[list[int]] = [[] for _ in range(num_batches)]
    cheapest = [(0, number) for number in range(num_batches)]
    for index in indices:
        total, number = heappop(cheapest)
        batches[number].append(index)
        if len(batches[number]) != most:
            heappush(cheapest, (total + costs[index], number))
    return batches


def best_fit(indices: list[int], costs: Sequence[int], capacity: int) -> list[list[int]]:
    """Deal indices, the costliest first, each to the fullest batch it fits into, or to a new one."""
    batches: list[list[int]] = []
    rooms: list[int] = []
    for index in indices:
        fitting = [number for number, room in enumerate(rooms) if costs[index] <= room]
        if fitting:
            fullest = min(fitting, key=rooms.__getitem__)
        else:
            fullest = len(batches)
            batches.append([])
            rooms.append(capacity)
        batches[fullest].append(index)
        rooms[fullest] -= costs[index]
    return batches


def split_to_multiple(batches: list[list[int]], world: int) -> list[list[int]]:
    """Return batches whose number is a multiple of ``world``: the fullest are halved; what cannot be is left empty."""
    batches = list(batches)
    while len(batches) % world:
        largest = max(range(len(batches)), key=lambda number: len(batches[number]))
        whole = batches[largest]
        batches[largest] = whole[::2]
        batches.append(whole[1::2])
    return batches
