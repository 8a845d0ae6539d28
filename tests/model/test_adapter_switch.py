"""One model with its adapter and without it: the same logits as of two models loaded alone."""

import pytest
import torch

from internvl.model.adapter_reading import read_adapter
from internvl.model.adapter_switch import AdapterSwitch
from internvl.model.checkpoint import Checkpoint
from internvl.model.loading import load_config, load_model


def logits(model):
    ids = torch.arange(5, 25)[None]
    features = model.extract_feature(torch.linspace(-1, 1, 3 * 56 * 56).reshape(1, 3, 56, 56))
    return torch.cat([model.language_model(input_ids=ids).logits.flatten(), features.flatten()])


@torch.no_grad()
def test_on_and_off_are_the_adapter_and_its_base(tiny_base, trained_adapter):
    base, adapted = load_model(tiny_base).model, load_model(trained_adapter).model
    model, checkpoint = load_model(tiny_base).model, Checkpoint(trained_adapter)
    switch = AdapterSwitch(model, read_adapter(checkpoint, load_config(checkpoint)))
    assert switch.layers and switch.replaced, "the adapter has LoRA, and a projector that was trained whole"
    assert not torch.equal(logits(base), logits(adapted))
    for _ in range(2):
        assert torch.equal(logits(model), logits(adapted))
        with switch.off():
            assert torch.equal(logits(model), logits(base))
    with pytest.raises(RuntimeError), switch.off():
        raise RuntimeError
    assert torch.equal(logits(model), logits(adapted))


def test_the_weights_of_the_base_are_held_once(tiny_base, trained_adapter):
    model, checkpoint = load_model(tiny_base).model, Checkpoint(trained_adapter)
    before = {id(parameter): parameter for parameter in model.parameters()}
    switch = AdapterSwitch(model, read_adapter(checkpoint, load_config(checkpoint)))
    kept = sum(id(parameter) in before for parameter in model.parameters())
    assert kept == len(before)
    assert sum(other.numel() for other in switch.replaced.values()) < sum(p.numel() for p in before.values()) / 4
