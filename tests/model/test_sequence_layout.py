"""Rows in one sequence: positions, and attention that equals a plain masked one."""

import pytest
import torch

from internvl.model.internvl_chat.attention import eager_attention
from internvl.model.internvl_chat.sequence_layout import SequenceLayout, attend_in_groups

LAYOUTS = [
    SequenceLayout(((6, ()),)),
    SequenceLayout(((5, (2, 3)), (4, ()))),
    SequenceLayout(((1, ()), (7, (1, 1, 4)), (2, (3,)), (5, ()))),
    SequenceLayout(((40, (2, 3, 2)), (3, (9, 8, 9)))),  # one masked call, and one for each
    SequenceLayout(((5, (2, (3, (1, 1)))), (4, ()))),
    SequenceLayout(((3, ((2, ((2, ((2, (1,)), 3)), 1)), 2)), (1, (1,)))),  # a chain with ends on the way
    SequenceLayout(((4, ((30, (1, 2, 3)), (30, (4, 5)), 6, (2, ((2, ()),)), 7)),)),  # ends between branches
]


def slow_mask(layout: SequenceLayout) -> torch.Tensor:
    """Which token sees which, token by token: bool (N, N)."""
    paths = []  # of each token: the branches that lead to it from its group, and its position
    for group, tree in enumerate(layout.groups):
        paths += walk(tree, (group,), 0)
    mask = torch.zeros(len(paths), len(paths), dtype=torch.bool)
    for query, (path, position) in enumerate(paths):
        for key, (other_path, other_position) in enumerate(paths):
            mask[query, key] = path[: len(other_path)] == other_path and other_position <= position
    return mask


def walk(branch, path: tuple[int, ...], start: int) -> list[tuple[tuple[int, ...], int]]:
    """Return (path, position) of every token of a tree."""
    own, branches = (branch, ()) if isinstance(branch, int) else branch
    tokens = [(path, start + offset) for offset in range(own)]
    for number, below in enumerate(branches):
        tokens += walk(below, (*path, number), start + own)
    return tokens


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_attention_and_its_gradients_equal_a_plain_masked_one(layout):
    tokens = layout.num_tokens
    inputs = [torch.randn(1, heads, tokens, 8, requires_grad=True) for heads in (4, 2, 2)]
    weights = torch.randn(1, tokens, 4, 8)
    bias = torch.zeros(tokens, tokens).masked_fill(~slow_mask(layout), float("-inf"))
    expected, _ = eager_attention(torch.nn.Identity(), *inputs, bias)
    gradients = torch.autograd.grad((expected * weights).sum(), inputs)
    got = attend_in_groups(*inputs, layout)
    assert torch.allclose(got, expected, atol=1e-6)
    for mine, theirs in zip(torch.autograd.grad((got * weights).sum(), inputs), gradients, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_positions_of_continuations_count_on_from_the_prefix():
    layout = LAYOUTS[1]
    assert layout.position_ids().tolist() == [[0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 0, 1, 2, 3]]
    assert layout.num_tokens == 14 and layout.longest == 8
    tree = LAYOUTS[4]
    assert tree.position_ids().tolist() == [[0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 8, 0, 1, 2, 3]]
    assert tree.num_tokens == 16 and tree.longest == 9
    for layout in LAYOUTS:
        positions = [position for group in layout.groups for _, position in walk(group, (), 0)]
        assert layout.position_ids().tolist() == [positions] and layout.longest == max(positions) + 1


def test_a_layout_of_another_length_is_refused():
    states = torch.zeros(1, 2, 13, 8)
    with pytest.raises(ValueError, match="one sequence of 14 tokens, and the input is of shape 1 × 13"):
        attend_in_groups(states, states, states, LAYOUTS[1])


def test_beyond_the_trained_length_a_row_is_scaled_by_its_own_length(tiny_model):
    model = tiny_model.model
    config = model.config.llm_config
    config.max_position_embeddings = 10
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    ids = torch.randint(5, 300, (1, 16))
    with torch.no_grad():
        alone = model(input_ids=ids).logits
        packed = model(input_ids=torch.cat([ids, ids], dim=1), layout=SequenceLayout(((16, ()), (16, ())))).logits
    assert torch.allclose(packed[:, 16:], alone, atol=1e-5)
