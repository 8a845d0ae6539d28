"""Attention on the device: in groups, behind padding, in half precision."""

import pytest
import torch
from acceptance.right import dense_attention

from internvl.model.internvl_chat.attention import causal_mask, eager_attention, sdpa_attention
from internvl.model.internvl_chat.sequence_layout import SequenceLayout, attend_in_groups

LAYOUTS = {
    "a row": ((30, ()),),
    "a prefix with suffixes": ((40, (3, 5, 1)),),
    "long suffixes": ((8, (30, 20)),),
    "many rows": ((5, ()),) * 40,
    "a tree": ((40, (3, 5, (20, (2, (9, (1, 4)))))), (6, ((8, (2, 2)),))),
    "all kinds": ((40, (3, 5)), (7, ()), (1, (2, 2)), (20, (1,))),
}


def states(layout: SequenceLayout, device, dtype) -> list[torch.Tensor]:
    shapes = [(1, heads, layout.num_tokens, 16) for heads in (4, 2, 2)]
    return [torch.randn(shape).to(device, dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("name", LAYOUTS)
def test_attention_in_groups_is_that_of_a_dense_mask_with_its_gradients(name, device, half):
    layout = SequenceLayout(LAYOUTS[name])
    for dtype in {torch.float32, half}:
        given = states(layout, device, dtype)
        exact = [part.detach().float().requires_grad_() for part in given]
        output, expected = attend_in_groups(*given, layout), dense_attention(*exact, layout)
        output.float().square().sum().backward()
        expected.square().sum().backward()
        most = 1e-5 if dtype == torch.float32 else 2e-2
        for mine, theirs in [(output, expected), *((a.grad, b.grad) for a, b in zip(given, exact, strict=True))]:
            assert (mine.float() - theirs).abs().max() <= most * theirs.abs().max()


def test_rows_of_padding_alone_give_numbers_and_gradients(device, half):
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]], device=device)
    visible = causal_mask(mask, 6, 0, torch.device(device))
    given = [torch.randn(3, heads, 6, 16, device=device, dtype=half, requires_grad=True) for heads in (4, 2, 2)]

    class Layer(torch.nn.Module):
        is_causal = True

    output, _ = sdpa_attention(Layer(), *given, visible)
    output.float().square().sum().backward()
    assert output.isfinite().all() and all(part.grad.isfinite().all() for part in given)
    expected, _ = eager_attention(Layer(), *(part.detach().float() for part in given), visible)
    assert (output.float() - expected).abs().max() <= (1e-5 if half == torch.float32 else 3e-2)


def test_cudnn_attention_is_left_out(device):
    assert not torch.backends.cuda.cudnn_sdp_enabled()
