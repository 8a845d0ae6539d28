"""What an adapter's config may say, by key; and that each way out which a refusal names is one."""

import json
import math
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from safetensors.torch import load_file

from internvl.commands.merge_lora import main as merge_lora
from internvl.errors import UserError
from internvl.model.adapter_config import read_settings
from internvl.model.checkpoint import Checkpoint
from internvl.model.loading import load_model
from internvl.model.merging import merge_checkpoint
from tests.model.random_adapters import LANGUAGE, VISION, rewrite, save, wrap
from tests.model.refusals import assert_refused

PLAIN = {"r": 4, "lora_alpha": 12, "target_modules": LANGUAGE}


@pytest.fixture
def adapter(tiny_base, tmp_path) -> Path:
    """A plain LoRA adapter of PEFT's."""
    return save(wrap(load_model(tiny_base).model, PLAIN), tmp_path / "adapter", tiny_base)


REFUSED = {
    "LoHa": ({"peft_type": "LOHA"}, r"config.json:peft_type: is 'LOHA', and only LORA is read\. Merge it with"),
    "no kind": ({"peft_type": None}, r":peft_type: is None"),
    "aLoRA": ({"alora_invocation_tokens": [5, 6]}, r":alora_invocation_tokens: is \[5, 6\]\. aLoRA acts only after"),
    "QA-LoRA": ({"use_qalora": True}, r":use_qalora: is True\. QA-LoRA belongs to weights quantised in groups"),
    "layer replication": ({"layer_replication": [[0, 2], [1, 2]]}, r":layer_replication: is \[\[0, 2.* deeper model"),
    "Megatron": ({"megatron_config": {"a": 1}}, r":megatron_config: is .*Megatron's parallel layers"),
    "parameters": ({"target_parameters": ["experts.w1"]}, r":target_parameters: is .*instead of layers"),
    "tokens": ({"trainable_token_indices": [3]}, r":trainable_token_indices: is \[3\]\. Tokens trained one by one"),
    "Arrow": ({"arrow_config": {"top_k": 3}}, r":arrow_config: is .*between several adapters"),
    "BD-LoRA": ({"use_bdlora": {"nblocks": 2}}, r":use_bdlora: is .*block-diagonal"),
    "VeLoRA": ({"velora_config": {"num_groups": 2}}, r":velora_config: is .*VeLoRA is not read"),
    "MonteCLoRA": ({"monteclora_config": {"a": 1}}, r":monteclora_config: is .*MonteCLoRA is not read"),
    "KaSA": ({"kasa_config": {"beta": 1}}, r":kasa_config: is .*KaSA changes the base's weights"),
    "unknown key": ({"use_xlora": True}, r":'use_xlora': is True, and this key, which PEFT '\S+' wrote, is not"),
    "unknown key with a number": ({"new_scale": 2.0}, r":'new_scale': is 2\.0"),
    "PiSSA": ({"init_lora_weights": "pissa"}, r":init_lora_weights: is 'pissa', and PiSSA takes .*Merge it with PEFT"),
    "fast PiSSA": ({"init_lora_weights": "pissa_niter_16"}, r"is 'pissa_niter_16', and PiSSA .*save it as plain LoRA"),
    "OLoRA": ({"init_lora_weights": "olora"}, r"is 'olora', and OLoRA takes .*Merge it with PEFT"),
    "CorDA": ({"init_lora_weights": "corda"}, r"is 'corda', and CorDA takes .*save it as plain LoRA"),
    "LoRA-GA": ({"init_lora_weights": "lora_ga"}, r"is 'lora_ga', and LoRA-GA takes .*save it as plain LoRA"),
    "LoftQ": ({"init_lora_weights": "loftq"}, r"is 'loftq', and LoftQ quantises .*Where it was trained, merge it"),
    "unknown start": ({"init_lora_weights": "sunny"}, r"is 'sunny', a start that is not known here"),
    "start of another type": ({"init_lora_weights": 3}, r"is 3, a start that is not known here"),
    "rank 0": ({"r": 0}, r":r: is 0\. Give the rank it was trained with, from 1"),
    "rank that is text": ({"r": "8"}, r":r: is '8'"),
    "no alpha": ({"lora_alpha": None}, r":lora_alpha: is None\. Give the number it was trained with, above 0"),
    "alpha 0": ({"lora_alpha": 0}, r":lora_alpha: is 0"),
    "rank in a pattern": ({"rank_pattern": {"wo": -1}}, r":rank_pattern.wo: is -1"),
    "alpha in a pattern": ({"alpha_pattern": {"wo": "2"}}, r":alpha_pattern.wo: is '2'"),
    "pattern": ({"rank_pattern": {"w(o": 4}}, r":rank_pattern: 'w\(o' is not a regular expression"),
    "patterns": ({"alpha_pattern": [4]}, r":alpha_pattern: is \[4\]\. Give an object"),
    "flag": ({"use_dora": "yes"}, r":use_dora: is 'yes'\. Give true or false"),
    "bias with DoRA": ({"use_dora": True, "lora_bias": True}, r":lora_bias: is true beside use_dora"),
    "no targets": ({"target_modules": None}, r":target_modules: is missing"),
    "target expression": ({"target_modules": "w(o"}, r":target_modules: 'w\(o' is not a regular expression"),
    "targets": ({"target_modules": [1]}, r":target_modules: is \[1\]\. Give a list of names"),
    "other targets": ({"target_modules": ["q_proj"]}, r":target_modules: does not select language_model.* Correct"),
    "excluded": ({"exclude_modules": ["wo"]}, r":target_modules: does not select .*attention.wo, which"),
    "layers": ({"layers_to_transform": [0]}, r":target_modules: does not select language_model.model.layers.1"),
    "layers that are text": ({"layers_to_transform": "0"}, r":layers_to_transform: is '0'"),
    "layers pattern": ({"layers_pattern": 3}, r":layers_pattern: is 3"),
    "saved modules": ({"modules_to_save": "mlp1"}, r":modules_to_save: is 'mlp1'\. Give a list of names"),
    "bias without tensors": ({"lora_bias": True}, r"but not lora_B.bias beside it\. Copy the complete adapter there"),
    "DoRA without tensors": ({"use_dora": True}, r"but not lora_magnitude_vector beside it"),
    "another rank": ({"r": 8}, r":r: is 8, and the LoRA of .* has rank 4\. Correct r or rank_pattern"),
    "another rank by pattern": ({"rank_pattern": {"wo": 2}}, r":rank_pattern.wo: is 2, and the .*wo has rank 4"),
    "saved module without tensors": ({"modules_to_save": ["mlp1"]}, r"lacks mlp1.0.weight, and modules_to_save says"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_read_is_refused_by_name_and_leaves_nothing(changes, message, adapter, tmp_path, capsys):
    rewrite(adapter, **changes)
    assert_refused(adapter, message, tmp_path, capsys)


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "orthogonal", "eva", "mica"])
def test_starts_that_leave_the_base_alone_are_read(start, adapter):
    assert read_settings(Checkpoint(rewrite(adapter, init_lora_weights=start))).r == 4


@pytest.mark.parametrize(
    "changes",
    [{"new_option": None}, {"new_option": False}, {"new_option": []}, {"megatron_core": "other.core"},
     {"fan_in_fan_out": True}, {"qalora_group_size": 4}, {"eva_config": {"rho": 2}}, {"revision": "main"},
     {"ensure_weight_tying": True}, {"target_modules": "all-linear"}],
    ids=str,
)  # fmt: skip
def test_keys_without_effect_and_unknown_ones_that_are_off_are_read(changes, adapter, tmp_path):
    merge_checkpoint(Checkpoint(adapter), tmp_path / "plain")
    rewrite(adapter, **changes)
    merge_checkpoint(Checkpoint(adapter), tmp_path / "changed")
    plain, changed = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "changed"))
    assert all(torch.equal(plain[name], changed[name]) for name in plain)


def test_every_key_that_peft_writes_is_known():
    from internvl.model.adapter_config import READ, REFUSED, WITHOUT_EFFECT

    assert LoraConfig().to_dict().keys() <= READ | WITHOUT_EFFECT | REFUSED.keys()


@pytest.mark.parametrize(
    ("layer", "rank", "scaling"),
    [
        ("language_model.model.layers.0.attention.wo", 2, 12 / 2),
        ("language_model.model.layers.1.attention.wo", 5, 3 / 5),  # the first pattern that fits
        ("language_model.model.layers.1.attention.wqkv", 5, 12 / 5),
        ("language_model.model.layers.0.attention.two", 4, 12 / 4),  # the end of a name is a whole word
    ],
)
def test_rank_and_scaling_are_those_of_the_pattern_that_fits(layer, rank, scaling, adapter):
    patterns = {r".*\.layers\.1\..*": 5, "wo": 2}
    settings = read_settings(Checkpoint(rewrite(adapter, rank_pattern=patterns, alpha_pattern={"1.attention.wo": 3})))
    assert (settings.rank(layer), settings.scaling(layer)) == (rank, scaling)
    settings = read_settings(Checkpoint(rewrite(adapter, use_rslora=True)))
    assert settings.scaling(layer) == scaling * rank / math.sqrt(rank)


def random_adapter(model, config):
    """PEFT's model with random weights in the adapter."""
    peft = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return peft


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(40, 60)[None]).logits


def merge_with_peft(folder, model, tokenizer, out):
    """What the messages advise: PeftModel.from_pretrained, merge_and_unload, save_pretrained."""
    PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(out)
    tokenizer.save_pretrained(out)


VARIANTS = {
    "LoHa": LoHaConfig(r=4, target_modules=LANGUAGE),
    "PiSSA": LoraConfig(**PLAIN, init_lora_weights="pissa"),
    "OLoRA": LoraConfig(**PLAIN, init_lora_weights="olora"),
    "BD-LoRA": LoraConfig(**PLAIN, use_bdlora=BdLoraConfig(target_modules_bd_a=["wo"], nblocks=2, match_strict=False)),
    "VeLoRA": LoraConfig(**PLAIN, velora_config=VeloraConfig(num_groups=2)),
    "KaSA": LoraConfig(**PLAIN, kasa_config=KasaConfig()),
    "MonteCLoRA": LoraConfig(**PLAIN, monteclora_config=MontecloraConfig()),
    "tokens": LoraConfig(**PLAIN, trainable_token_indices={"tok_embeddings": [3, 50]}),
    "parameters": LoraConfig(r=4, target_modules=[], target_parameters=["feed_forward.w1.weight"]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_merging_with_peft_as_the_message_says_gives_a_model_that_loads(config, tiny_base, tmp_path):
    model, tokenizer = load_model(tiny_base)
    peft = random_adapter(model, config)
    expected = logits(peft)
    folder = save(peft, tmp_path / "adapter", tiny_base)
    with pytest.raises(UserError, match=r"Merge it with PEFT \(PeftModel.from_pretrained\(model, FOLDER\)"):
        load_model(folder)
    merge_with_peft(folder, load_model(tiny_base).model, tokenizer, tmp_path / "whole")
    merged = logits(load_model(tmp_path / "whole").model)
    assert (merged - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_saving_as_plain_lora_as_the_message_says_gives_an_adapter_of_the_base(start, tiny_base, tmp_path):
    torch.manual_seed(3)
    peft = get_peft_model(load_model(tiny_base).model, LoraConfig(**PLAIN, init_lora_weights=start))
    peft.peft_config["default"].init_lora_weights = True
    initial = tmp_path / "initial"
    save(peft, initial, tiny_base)
    peft.peft_config["default"].init_lora_weights = start
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    expected = logits(peft)
    out = tmp_path / "out"
    peft.save_pretrained(out, path_initial_model_for_weight_conversion=str(initial))
    rewrite(out, base_model_name_or_path=str(tiny_base))
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 8  # twice the rank: the start is in it
    assert (logits(load_model(out).model) - expected).abs().max() < 1e-4 * expected.abs().max()
    merge_lora([str(out), str(tmp_path / "merged")])
    assert (logits(load_model(tmp_path / "merged").model) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_bias_of_lora_goes_where_the_base_has_one_and_is_refused_elsewhere(tiny_base, tmp_path):
    settings = {"r": 4, "lora_bias": True, "target_modules": VISION}
    good = save(wrap(load_model(tiny_base).model, settings), tmp_path / "good", tiny_base)
    merge_lora([str(good), str(tmp_path / "merged")])
    base, merged = (load_file(folder / "model.safetensors") for folder in (tiny_base, tmp_path / "merged"))
    name = "vision_model.encoder.layers.0.attn.qkv"
    bias = load_file(good / "adapter_model.safetensors")[f"base_model.model.{name}.lora_B.bias"]
    scaling = LoraConfig().lora_alpha / 4
    assert torch.equal(merged[f"{name}.bias"], base[f"{name}.bias"] + bias * scaling) and bias.abs().max() > 0
    bad = save(wrap(load_model(tiny_base).model, settings | {"target_modules": ["wo"]}), tmp_path / "bad", tiny_base)
    with pytest.raises(UserError, match=r"lora_B.bias' is a bias for .*attention.wo, which has none in the base"):
        load_model(bad)
