"""Adapters of any PEFT origin, merged and loaded, against PEFT's own merge and forward pass."""

import warnings

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from internvl.model.checkpoint import Checkpoint
from internvl.model.loading import load_model
from internvl.model.merging import merge_checkpoint
from tests.model.random_adapters import random_settings, save, wrap

NUM_RANDOM = 36
# Rounding of one operation in fp32, against the largest number of the tensor.
EPS = torch.finfo(torch.float32).eps


@pytest.fixture
def base_model(tiny_base):
    def make():
        torch.manual_seed(0)
        return load_model(tiny_base).model

    return make


def inputs(model) -> dict[str, torch.Tensor]:
    ids = torch.arange(40, 70)[None]
    ids[0, 3 : 3 + model.num_image_token] = model.img_context_token_id
    return {"pixel_values": torch.randn(1, 3, 56, 56), "input_ids": ids}


def assert_merges_and_loads_like_peft(adapter, peft: PeftModel, tmp_path, *, exactly=True) -> float:
    """Compare both ways with PEFT's model; return the largest error of a weight against its tensor's largest."""
    whole = peft.get_base_model()
    given = inputs(load_model(adapter).model)
    whole.img_context_token_id = int(given["input_ids"][0, 3])
    with torch.no_grad():
        theirs, ours = whole(**given).logits, load_model(adapter).model(**given).logits
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    merge_checkpoint(Checkpoint(adapter), tmp_path / "merged")
    merged, expected = load_file(tmp_path / "merged" / "model.safetensors"), peft.merge_and_unload().state_dict()
    assert merged.keys() == expected.keys()
    errors = {name: float((merged[name] - expected[name]).abs().max()) for name in merged}
    scales = {name: float(expected[name].abs().max()) or 1.0 for name in merged}
    relative = {name: errors[name] / scales[name] for name in merged}
    worst = max(relative, key=relative.get)
    # A convolution's B A is computed by another kernel there.
    assert all(error == 0 for name, error in errors.items() if exactly and "patch_embedding" not in name)
    assert relative[worst] <= 4 * EPS, worst
    with torch.no_grad():
        again = load_model(tmp_path / "merged").model(**given).logits
    assert (again - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    return relative[worst]


@pytest.mark.parametrize("seed", range(NUM_RANDOM))
def test_a_random_adapter_merges_bit_for_bit_as_peft_does_and_answers_as_its_model(
    seed, base_model, tiny_base, tmp_path, record_property
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, about bias and tied layers
        trained = wrap(base_model(), random_settings(seed), seed)
    folder = save(trained, tmp_path / "adapter", tiny_base)
    # As saved, and not as it was: PEFT sorts the patterns when it saves them, and the first that fits counts.
    peft = PeftModel.from_pretrained(base_model(), folder)
    error = assert_merges_and_loads_like_peft(folder, peft, tmp_path)
    record_property("largest relative error", error)
