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
]


def slow_mask(layout: SequenceLayout) -> torch.Tensor:
    """Which token sees which, token by token: bool (N, N)."""
    owners = []  # (group, continuation or None, position) of each token
    for group, (prefix, suffixes) in enumerate(layout.groups):
        owners += [(group, None, position) for position in range(prefix)]
        for number, length in enumerate(suffixes):
            owners += [(group, number, prefix + position) for position in range(length)]
    mask = torch.zeros(len(owners), len(owners), dtype=torch.bool)
    for query, (group, number, position) in enumerate(owners):
        for key, (other_group, other_number, other_position) in enumerate(owners):
            seen = other_number is None or other_number == number
            mask[query, key] = group == other_group and seen and other_position <= position
    return mask


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
