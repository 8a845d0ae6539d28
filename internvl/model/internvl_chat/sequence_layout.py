"""Several rows in one sequence, without padding: which positions they have, and which tokens each may attend to.

Axis letters: H query heads, G key/value heads, D head width, N tokens of the whole sequence.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class SequenceLayout:
    """How a sequence of N tokens is divided into groups that do not see each other.

    A group is a prefix followed by its suffixes, as (tokens of the prefix, tokens of each suffix). Every
    suffix goes on from the prefix as if the others were not there: its positions count on from the prefix's
    last, and it attends to the prefix and to itself. A row that shares nothing is a prefix alone.

    Example: ``SequenceLayout(((5, (2, 3)), (4, ())))`` is a prefix of 5 tokens with two suffixes, then a row::

        token         p p p p p | a a | b b b | r r r r
        position      0 1 2 3 4 | 5 6 | 5 6 7 | 0 1 2 3
        attends to        p     | p a |  p b  |    r
    """

    groups: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def num_tokens(self) -> int:
        """N, the tokens of the whole sequence."""
        return sum(prefix + sum(suffixes) for prefix, suffixes in self.groups)

    @property
    def longest(self) -> int:
        """Tokens of the longest row: a prefix with its longest suffix."""
        return max(prefix + max(suffixes, default=0) for prefix, suffixes in self.groups)

    def position_ids(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the position of each token in its row, int64 (1, N)."""
        runs = []
        for prefix, suffixes in self.groups:
            runs.append(torch.arange(prefix))
            runs += [torch.arange(prefix, prefix + length) for length in suffixes]
        return torch.cat(runs)[None].to(device)


@lru_cache(maxsize=64)
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

    Every prefix goes through the causal kernel and the
    suffixes of a group through masked calls, so no N × N mask exists and no product between groups is computed.
    PyTorch chooses the kernel (flash attention for half precision on a GPU).

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
    calls = [(prefix, split_suffixes(prefix, suffixes)) for prefix, suffixes in layout.groups]
    lengths = [length for prefix, parts in calls for length in (prefix, *map(sum, parts))]
    # Divided once: of slices, the backward pass would fill a tensor of the whole sequence for each one.
    pieces = zip(*(part.split(lengths, dim=2) for part in (query, key, value)), strict=True)
    outputs = []
    for prefix, parts in calls:
        own = next(pieces)
        outputs.append(F.scaled_dot_product_attention(*own, is_causal=True, enable_gqa=True))
        for together in parts:
            suffix_query, *suffix_states = next(pieces)
            seen = [torch.cat(pair, dim=2) for pair in zip(own[1:], suffix_states, strict=True)]
            outputs.append(attend_with_mask(suffix_query, *seen, suffix_mask(prefix, together, query.device)))
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
