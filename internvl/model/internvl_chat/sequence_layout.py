"""Several rows in one sequence, without padding: which positions they have, and which tokens each may attend to.

Axis letters: H query heads, G key/value heads, D head width, N tokens of the whole sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Union

import torch
from torch.nn import functional as F

# Tokens that rows have in common, and how each goes on from there: (tokens, branches). A branch is a tree of its own,
# or the number of tokens of a row's end.
PrefixTree = tuple[int, tuple[Union[int, "PrefixTree"], ...]]


@dataclass(frozen=True)
class SequenceLayout:
    """How a sequence of N tokens is divided into groups that do not see each other.

    A group is a tree of prefixes, :data:`PrefixTree`: a prefix followed by its branches. Every branch goes on from the
    prefix as if the others were not there: its positions count on from the prefix's last, and it attends to the
    prefixes above it and to itself. A row that shares nothing is a prefix alone.

    Example: ``SequenceLayout(((5, (2, (3, (1, 1)))), (4, ())))`` is a prefix of 5 tokens with two branches, of which
    the second has branches of its own, then a row::

        token         p p p p p | a a | b b b | c   | d   | r r r r
        position      0 1 2 3 4 | 5 6 | 5 6 7 | 8   | 8   | 0 1 2 3
        attends to        p     | p a |  p b  | pbc | pbd |    r
    """

    groups: tuple[PrefixTree, ...]

    @property
    def num_tokens(self) -> int:
        """N, the tokens of the whole sequence."""
        return sum(sum(run.lengths) for run in _runs(self.groups))

    @property
    def longest(self) -> int:
        """Tokens of the longest row: from the first of its group to its end."""
        return max(run.start + max(run.lengths) for run in _runs(self.groups))

    def position_ids(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the position of each token in its row, int64 (1, N)."""
        lengths = [(run.start, length) for run in _runs(self.groups) for length in run.lengths]
        return torch.cat([torch.arange(start, start + length) for start, length in lengths])[None].to(device)


class Run(NamedTuple):
    """Tokens that attention takes in one call: a prefix, or the ends of several rows behind one.

    ``lengths`` are those of each, which do not see each other. ``parent`` is the number of the run that they go on
    from, None at the root, and ``start`` the number of tokens they see of the prefixes above them.
    """

    lengths: tuple[int, ...]
    parent: int | None
    start: int


@lru_cache(maxsize=16)
def _runs(groups: tuple[PrefixTree, ...]) -> tuple[Run, ...]:
    """Return the runs of a sequence in its order; kept because every layer of a forward pass asks for the same."""
    runs: list[Run] = []
    for group in groups:
        _add_runs(group, None, 0, runs)
    return tuple(runs)


def _add_runs(tree: PrefixTree, parent: int | None, start: int, runs: list[Run]) -> None:
    own, branches = tree
    number, start_of_branches = len(runs), start + own
    runs.append(Run((own,), parent, start))
    ends: tuple[int, ...] = ()  # of rows, one behind the other
    for branch in (*branches, None):
        if isinstance(branch, int):
            ends += (branch,)
            continue
        runs += [Run(together, number, start_of_branches) for together in split_suffixes(start_of_branches, ends)]
        ends = ()
        if branch is not None:
            _add_runs(branch, number, start_of_branches, runs)


@lru_cache(maxsize=128)
def suffix_mask(prefix: int, suffixes: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return which tokens of a group its suffixes attend to: bool (their tokens, tokens of the group).

    Kept between calls because every layer of a forward pass asks for the same ones.
    """
    own = torch.block_diag(*(torch.ones(length, length, dtype=torch.bool).tril() for length in suffixes))
    return torch.cat([torch.ones(len(own), prefix, dtype=torch.bool), own], dim=1).to(device)


def attend_in_groups(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: SequenceLayout
) -> torch.Tensor:
    """Compute attention inside each group of a sequence; return (1, N, H, D).

    The prefix of a group goes through the causal kernel and what follows it through masked calls, so no N × N mask
    exists and no product between groups or branches is computed. PyTorch chooses the kernel (flash attention for half
    precision on a GPU).

    Args:
        query: (1, H, N, D).
        key: (1, G, N, D) with G dividing H.
        value: as ``key``.
        layout: the groups, N tokens together.

    Raises:
        ValueError: the layout is of another length than the sequence.
    """
    if query.shape[0] != 1 or query.shape[2] != layout.num_tokens:
        raise ValueError(
            f"The layout describes one sequence of {layout.num_tokens} tokens, and the input is of shape "
            f"{query.shape[0]} × {query.shape[2]}. Make the layout from the lengths of the rows in it."
        )
    runs = _runs(layout.groups)
    lengths = [sum(run.lengths) for run in runs]
    # Divided once: of slices, the backward pass would fill a tensor of the whole sequence for each one.
    pieces = zip(*(part.split(lengths, dim=2) for part in (query, key, value)), strict=True)
    parents = {run.parent for run in runs}
    seen: dict[int, Sequence[torch.Tensor]] = {}  # run → keys and values of its tokens and of all that it attends to
    outputs = []
    for number, (run, (own_query, *states)) in enumerate(zip(runs, pieces, strict=True)):
        if run.parent is None:
            outputs.append(F.scaled_dot_product_attention(own_query, *states, is_causal=True, enable_gqa=True))
        else:
            states = [torch.cat(pair, dim=2) for pair in zip(seen[run.parent], states, strict=True)]
            outputs.append(attend_with_mask(own_query, *states, suffix_mask(run.start, run.lengths, query.device)))
        if number in parents:
            seen[number] = states
    return torch.cat(outputs, dim=2).transpose(1, 2)


def split_suffixes(prefix: int, suffixes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return which suffixes share a masked call: all of them if little is computed that the mask then hides.

    Captions of 22 tokens behind 1,792 of an image are one call; answers of 400 tokens behind 256 are one each.
    """
    if not suffixes:
        return []
    seen_by_all = prefix + sum(suffixes)
    return [suffixes] if seen_by_all <= 1.25 * (prefix + max(suffixes)) else [(n,) for n in suffixes]


def attend_with_mask(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Compute attention where a mask allows it; return (1, H, queries, D).

    Args:
        query: (1, H, queries, D).
        key: (1, G, keys, D) with G dividing H.
        value: as ``key``.
        mask: bool (queries, keys).
    """
    if query.is_cuda:
        # The kernel that takes masks there knows no grouped heads; without this, one would keep all scores.
        key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=not query.is_cuda)
