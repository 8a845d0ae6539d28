"""Loading for inference: adapters merged, and models on more than one device."""

import pytest
import torch
from safetensors.torch import load_file

from internvl.commands.merge_lora import main as merge_lora
from internvl.inference import engine
from internvl.model.checkpoint import Checkpoint
from internvl.model.internvl_chat import InternVLChatModel
from internvl.model.loading import load_config, load_model


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_adapter_is_merged_to_the_weights_that_merge_lora_writes(trained_adapter, tmp_path, precision):
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    merge_lora([str(trained_adapter), str(tmp_path / "merged"), "--dtype", dtype])
    expected = load_file(tmp_path / "merged" / "model.safetensors")
    found = engine.Engine.load(trained_adapter, precision=precision, device="cpu").model.state_dict()
    assert found.keys() == expected.keys(), "no LoRA is left beside the weights"
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_training_and_comparisons_keep_an_adapter_beside_the_weights(trained_adapter):
    assert any("lora_A" in name for name in load_model(trained_adapter).model.state_dict())


def test_embeddings_may_lie_on_another_device_than_the_prompt(tiny_base):
    """As accelerate places the 2B model on four GPUs; the second device is the one that keeps no values."""
    model = InternVLChatModel(load_config(Checkpoint(tiny_base)))
    model.img_context_token_id = 5
    embedding = model.get_input_embeddings().to("meta")
    # What accelerate's hook does: the ids come to the weights.
    embedding.register_forward_pre_hook(lambda module, inputs: (inputs[0].to("meta"),))
    embedded = model.embed(torch.full((1, 4), 5), torch.zeros(1, 4, model.config.llm_config.hidden_size))
    assert embedded.shape == (1, 4, model.config.llm_config.hidden_size) and embedded.is_meta


@pytest.mark.parametrize("num_gpus", [2, 4, 8])
def test_a_model_that_fits_one_gpu_is_not_spread_over_several(tiny_base, monkeypatch, num_gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (80 << 30, 80 << 30))
    assert engine.fits_one_device(tiny_base)
    size = sum(file.stat().st_size for file in Checkpoint(tiny_base).weight_files)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (size, size))
    assert not engine.fits_one_device(tiny_base)
