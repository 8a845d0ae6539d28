"""Checkpoints of the original trainer, with LoRA weights inside: as a start for training, and what comes of it."""

import pytest
import torch
from safetensors.torch import load_file

from internvl.errors import UserError
from internvl.model.adapter import base_name, choose_trainable, embedded_name, is_lora, save_adapter
from internvl.model.checkpoint import Checkpoint
from internvl.model.loading import load_model
from internvl.model.merging import merge_checkpoint
from internvl.train.arguments import parse_arguments
from internvl.train.setup import load_for_training

IDS = torch.arange(40, 60)[None]


@pytest.fixture
def embedded(tiny_base, tmp_path):
    """A whole model saved with its LoRA (rank 4 on the language model) unmerged, as the original trainer does."""
    model, tokenizer = load_model(tiny_base)
    model.wrap_llm_lora(4, 8)
    model.config.use_llm_lora = 4
    move_trained(model.language_model, seed=1)
    folder = tmp_path / "embedded"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert Checkpoint(folder).has_embedded_lora and Checkpoint(folder).config["use_llm_lora"] == 4
    return folder


def move_trained(model, seed: int) -> None:
    """Change every trained weight, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def start(folder, tmp_path, *flags):
    arguments = ["--model_name_or_path", str(folder), "--meta_path", "m", "--output_dir", str(tmp_path / "out")]
    return load_for_training(*parse_arguments([*arguments, "--use_cpu", "True", *flags])).model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_its_lora_trains_on_and_nothing_else(embedded, tmp_path):
    model = start(embedded, tmp_path, "--use_llm_lora", "4", "--lora_dropout", "0.3", "--freeze_mlp", "True",
                  "--freeze_backbone", "True", "--freeze_llm", "True")  # fmt: skip
    assert torch.equal(logits(model), logits(load_model(embedded).model))
    trained = {embedded_name(n, model.config) for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name in Checkpoint(embedded).tensors if is_lora(name)} != set()
    rates = {module.p for name, module in model.named_modules() if name.endswith("lora_dropout.default")}
    assert rates == {0.3}


@pytest.mark.parametrize("flags", [[], ["--use_llm_lora", "8", "--freeze_llm", "True"]])
def test_another_rank_is_refused_with_both_ways_on(embedded, tmp_path, flags):
    with pytest.raises(UserError, match=r"--use_llm_lora: is [08], .* rank 4 inside\. Pass .* or merge"):
        start(embedded, tmp_path, *flags)


@pytest.mark.parametrize("flags", [{}, {"use_backbone_lora": 2}, {"freeze_mlp": False}], ids=str)
def test_the_adapter_trained_on_from_it_loads_and_merges_as_the_live_model(embedded, tmp_path, flags):
    model, tokenizer = load_model(embedded)
    choose_trainable(model, **{"freeze_backbone": True, "freeze_mlp": True, "use_llm_lora": 4, **flags})
    move_trained(model, seed=2)
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    save_adapter(model, adapter, base=embedded, base_sha256=Checkpoint(embedded).sha256())
    tokenizer.save_pretrained(adapter)
    assert torch.equal(logits(load_model(adapter).model), logits(model))
    merge_checkpoint(Checkpoint(adapter), merged)
    assert load_file(merged / "model.safetensors").keys() == {
        base_name(name) for name in Checkpoint(embedded).tensors if not is_lora(name)
    }
    assert torch.allclose(logits(load_model(merged).model), logits(model), atol=1e-5)


def test_an_adapter_of_another_rank_than_the_lora_inside_is_refused(embedded, trained_adapter):
    with pytest.raises(UserError, match="LoRA of rank 8 for language_model.* has LoRA of rank 4 inside"):
        load_model(Checkpoint(trained_adapter, base=embedded))
