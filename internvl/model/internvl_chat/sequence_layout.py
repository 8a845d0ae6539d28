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

    A group is a prefix followed by its continuations, as (tokens of the prefix, tokens of each continuation). Every
    continuation goes on from the prefix as if the others were not there: its positions count on from the prefix's
    last, and it attends to the prefix and to itself. A row that shares nothing is a prefix alone.

    Example: ``SequenceLayout(((5, (2, 3)), (4, ())))`` is a prefix of 5 tokens with two continuations, then a row::

        token         p p p p p | a a | b b b | r r r r
        position      0 1 2 3 4 | 5 6 | 5 6 7 | 0 1 2 3
        attends to        p     | p a |  p b  |    r
    """

    groups: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def num_tokens(self) -> int:
        """N, the tokens of the whole sequence."""
        return sum(prefix + sum(continuations) for prefix, continuations in self.groups)

    @property
    def longest(self) -> int:
        """Tokens of the longest row: a prefix with its longest continuation."""
        return max(prefix + max(continuations, default=0) for prefix, continuations in self.groups)

    def position_ids(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the position of each token in its row, int64 (1, N)."""
        runs = []
        for prefix, continuations in self.groups:
            runs.append(torch.arange(prefix))
            runs += [torch.arange(prefix, prefix + length) for length in continuations]
        return torch.cat(runs)[None].to(device)


@lru_cache(maxsize=64)
def continuation_mask(prefix: int, continuations: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return which tokens of a group its continuations attend to: bool (their tokens, tokens of the group).

    Kept between calls because every layer of a forward pass asks for the same ones.
    """
    own = torch.block_diag(*(torch.ones(length, length, dtype=torch.bool).tril() for length in continuations))
    return torch.cat([torch.ones(len(own), prefix, dtype=torch.bool), own], dim=1).to(device)


def attend_in_groups(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: SequenceLayout
) -> torch.Tensor:
    """Compute attention inside each group of a sequence; returns (1, N, H, D).

    ``query`` is (1, H, N, D), ``key`` and ``value`` (1, G, N, D). Every prefix goes through the causal kernel and the
    continuations of a group through masked calls, so no N × N mask exists and no product between groups is computed.
    PyTorch chooses the kernel (flash attention for half precision on a GPU).

    Raises:
        ValueError: the layout is of another length than the sequence.
    """
    if query.shape[0] != 1 or query.shape[2] != layout.num_tokens:
        raise ValueError(
            f"The layout describes one sequence of {layout.num_tokens} tokens, and the input is of shape "
            f"{query.shape[0]} × {query.shape[2]}. Make the layout from the lengths of the rows in it."
        )
    outputs, start = [], 0
    for prefix, continuations in layout.groups:
        end = start + prefix
        own = [part[:, :, start:end] for part in (query, key, value)]
        outputs.append(F.scaled_dot_product_attention(*own, is_causal=True, enable_gqa=True))
        for together in split_continuations(prefix, continuations):
            stop = end + sum(together)
            seen = [
                torch.cat([part[:, :, start : start + prefix], part[:, :, end:stop]], dim=2) for part in (key, value)
            ]
            outputs.append(
                attend_with_mask(query[:, :, end:stop], *seen, continuation_mask(prefix, together, query.device))
            )
            end = stop
        start = end
    return torch.cat(outputs, dim=2).transpose(1, 2)


def split_continuations(prefix: int, continuations: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return which continuations share a masked call: all of them if little is computed that the mask then hides.

    Captions of 22 tokens behind 1,792 of an image are one call; answers of 400 tokens behind 256 are one each.
    """
    if not continuations:
        return []
    seen_by_all = prefix + sum(continuations)
    return [continuations] if seen_by_all <= 1.25 * (prefix + max(continuations)) else [(n,) for n in continuations]


def attend_with_mask(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Compute attention where ``mask`` (queries, keys) allows it; shapes as above."""
    if query.is_cuda:
        # The kernel that takes masks there knows no grouped heads; without this, one would keep all scores.
        key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=not query.is_cuda)
