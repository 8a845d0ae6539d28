"""The order of rows in an epoch: shuffled, with rows of like length in one optimizer step."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class LengthGroupedSampler(Sampler[int]):
    """Yields indices so that each optimizer step's rows are chosen at random but dealt out by length.

    The shuffled indices are cut into megabatches of ``batch_size`` × ``num_batches`` rows: what one optimizer step
    sees over all processes and accumulation steps. Inside a megabatch rows are sorted by length and dealt into
    ``num_batches`` batches of ``batch_size`` whose token totals are about equal. Which rows share a step therefore
    depends on their product only, not on how it is split.
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int, num_batches: int, seed: int = 0):
        self.lengths = lengths
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffle of ``epoch``."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from group_by_length(self.lengths, self.batch_size, self.num_batches, generator)


def group_by_length(
    lengths: Sequence[int], batch_size: int, num_batches: int, generator: torch.Generator
) -> list[int]:
    """Return all indices in the order described in :class:`LengthGroupedSampler`."""
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
    size = len(indices) // num_batches
    batches, totals = [[] for _ in range(num_batches)], [0.0] * num_batches
    for index in indices:
        emptiest = totals.index(min(totals))
        batches[emptiest].append(index)
        totals[emptiest] += lengths[index]
        if len(batches[emptiest]) == size:
            totals[emptiest] = float("inf")
    return batches
