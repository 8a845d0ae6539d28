"""LoRA by its flags: what PEFT makes of the settings is what is trained, stored, read again and merged."""

import copy
import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from internvl.commands.merge_lora import main as merge_lora
from internvl.errors import UserError
from internvl.model.adapter import choose_trainable, lora_config_of, save_adapter
from internvl.model.checkpoint import Checkpoint
from internvl.model.loading import load_model
from internvl.model.lora_recipe import LoraRecipe
from internvl.model.packaging import write_chat_tokenizer
from internvl.train.arguments import parse_arguments
from internvl.train.setup import load_for_training
from tests.model.tiny_members import FROZEN, LLMS, randomize_lora

RECIPES = {
    "alpha": LoraRecipe(alpha=5),
    "rsLoRA": LoraRecipe(use_rslora=True),
    "DoRA": LoraRecipe(use_dora=True),
    "DoRA and rsLoRA": LoraRecipe(use_dora=True, use_rslora=True, alpha=3),
}
FEW = {"internlm2": ("wqkv", "feed_forward.w2"), "qwen2": ("q_proj", "down_proj"), "qwen3": ("q_proj", "v_proj")}


def train_a_little(folder, recipe: LoraRecipe, *, vision: int = 2) -> PeftModel:
    whole = choose_trainable(load_model(folder).model, **FROZEN, use_llm_lora=4, use_backbone_lora=vision, lora=recipe)
    randomize_lora(whole)
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1.2)
    return whole


@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("name", RECIPES)
def test_the_merged_weights_are_those_that_peft_merges(tiny_member, tmp_path, llm, name):
    base = tiny_member(llm)
    whole = train_a_little(base, RECIPES[name])
    save_adapter(whole, tmp_path / "adapter", base=base, base_sha256=Checkpoint(base).sha256())
    write_chat_tokenizer(tmp_path / "adapter", load_model(base).tokenizer, whole.config.template)
    merge_lora([str(tmp_path / "adapter"), str(tmp_path / "merged")])
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    expected = copy.deepcopy(whole).merge_and_unload().state_dict()
    assert merged.keys() == expected.keys()
    for key, tensor in expected.items():
        assert (merged[key] - tensor).abs().max() <= 1e-6 * tensor.abs().max().clamp(min=1), key

    # PEFT reads what is written as its own.
    again = PeftModel.from_pretrained(load_model(base).model, tmp_path / "adapter")
    found, stored = again.peft_config["default"], RECIPES[name]
    assert (found.use_dora, found.use_rslora) == (stored.use_dora, stored.use_rslora)
    assert found.lora_alpha == (stored.alpha or 8)
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        ours, theirs = whole.eval()(input_ids=ids).logits, again.eval()(input_ids=ids).logits
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("llm", LLMS)
def test_targets_are_found_by_the_ends_of_their_names(tiny_member, llm):
    whole = train_a_little(tiny_member(llm), LoraRecipe(targets=FEW[llm]), vision=0)
    trained = {name.split(".lora_")[0] for name, weight in whole.named_parameters() if weight.requires_grad}
    assert trained and all(name.endswith(FEW[llm]) and "vision" not in name for name in trained)
    assert len(trained) == 2 * len(FEW[llm])  # layers
    config = lora_config_of(whole)
    assert config is not None and len(config.target_modules) == len(FEW[llm])


def test_all_linear_are_those_of_the_language_models_blocks(tiny_member):
    model = load_model(tiny_member("qwen3")).model
    everything = LoraRecipe(targets=("all-linear",)).llm_targets(model)
    assert sorted(everything) == sorted(LoraRecipe().llm_targets(model))


def test_a_target_that_is_not_there_is_refused_with_those_that_are(tiny_member):
    with pytest.raises(UserError, match=r"'q_proj' is no linear layer .* Choose from: attention.wqkv, attention.wo"):
        train_a_little(tiny_member("internlm2"), LoraRecipe(targets=("wo", "q_proj")))


def flags(base, tmp_path, *more: str):
    words = ["--model_name_or_path", str(base), "--meta_path", "m", "--output_dir", str(tmp_path), "--use_cpu", "True"]
    return parse_arguments([*words, "--freeze_llm", "True", *more])


def test_the_flags_reach_the_adapter_file(tiny_member, tmp_path):
    groups = flags(
        tiny_member("qwen2"), tmp_path, "--use_llm_lora", "4", "--lora_alpha", "6", "--use_rslora", "True",
        "--use_dora", "True", "--lora_target_modules", "q_proj, v_proj",
    )  # fmt: skip
    model = load_for_training(*groups).model
    save_adapter(model, tmp_path / "adapter", base="b", base_sha256="")
    stored = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (stored["r"], stored["lora_alpha"], stored["use_rslora"], stored["use_dora"]) == (4, 6, True, True)
    assert stored["target_modules"] == ["self_attn.q_proj", "self_attn.v_proj"]
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    assert any(name.endswith("q_proj.lora_magnitude_vector") for name in names)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--use_dora", "True"], "--use_dora: there is no LoRA"),
        (["--use_backbone_lora", "4", "--freeze_backbone", "True", "--lora_target_modules", "wo"], "has no LoRA"),
        (["--use_llm_lora", "4", "--lora_alpha", "0"], "--lora_alpha: is 0"),
        (["--use_llm_lora", "4", "--lora_alpha", "5", "--save_full_model", "True"], "Remove --save_full_model"),
    ],
)
def test_what_cannot_be_is_refused(tiny_member, tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        flags(tiny_member("internlm2"), tmp_path, *given)
