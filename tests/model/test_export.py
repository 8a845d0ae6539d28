"""Adapters for other programs: against PEFT on transformers' own classes, and what each program refuses."""

import json
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import InternVLForConditionalGeneration

from internvl.commands.convert_to_hf import main as convert
from internvl.commands.export_adapter import main as export
from internvl.errors import UserError
from internvl.json_files import write_json
from internvl.model.checkpoint import Checkpoint
from internvl.model.export import adapter_from_hf, adapter_to_hf, rename_modules
from internvl.model.hf_conversion import convert_to_hf
from internvl.model.loading import load_model

LANGUAGE = ["attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
VISION = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
KINDS = {
    "plain": {"target_modules": LANGUAGE},
    "both halves, patterns": {
        "target_modules": LANGUAGE + VISION,
        "rank_pattern": {"attn.qkv": 4, "layers.0.attention.wqkv": 2},
        "alpha_pattern": {"attn.qkv": 5, "feed_forward.w1": 3},
    },
    "all-linear with the projector": {"target_modules": [*LANGUAGE, "mlp1.1", "mlp1.3", "output"]},
    "rslora": {"target_modules": LANGUAGE, "use_rslora": True, "rank_pattern": {"attention.wo": 3}},
    "dora": {"target_modules": [*LANGUAGE, "attn.qkv"], "use_dora": True},
    "bias": {"target_modules": VISION, "lora_bias": True},
    "one layer": {"target_modules": LANGUAGE, "layers_to_transform": [1], "layers_pattern": "layers"},
    "modules trained in full": {
        "target_modules": LANGUAGE,
        "modules_to_save": ["mlp1", "vision_model.encoder.layers.1", "language_model.output"],
    },
}


@pytest.fixture(scope="module")
def hf_base(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "base"
    convert_to_hf(Checkpoint(tiny_base), folder)
    return folder


@pytest.fixture
def make_adapter(tiny_base, tmp_path):
    """``make_adapter(**settings)`` returns (PEFT's model with random LoRA, its adapter folder)."""

    def make(folder=tmp_path / "adapter", **settings):
        model = get_peft_model(
            load_model(tiny_base).model, LoraConfig(**{"r": 8, "lora_alpha": 12, **settings})
        ).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        model.peft_config["default"].base_model_name_or_path = str(tiny_base)
        model.save_pretrained(folder)
        return model, folder

    return make


def inputs_of(model) -> dict:
    """An image of two tiles and some text, as both layouts take it."""
    ids = torch.arange(40, 70)[None]
    ids[0, 3:11] = load_image_token(model)
    return {"pixel_values": torch.randn(2, 3, 56, 56), "input_ids": ids}


def load_image_token(model) -> int:
    return model.base_model.model.img_context_token_id


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_adapter_in_transformers_layout_gives_the_same_logits_and_comes_back(
    kind, make_adapter, hf_base, tmp_path, capsys
):
    model, folder = make_adapter(**KINDS[kind])
    export([str(folder), str(tmp_path / "exported"), "--for", "hf", "--hf-base", str(hf_base)])
    converted = PeftModel.from_pretrained(
        InternVLForConditionalGeneration.from_pretrained(hf_base), tmp_path / "exported"
    ).eval()
    inputs = inputs_of(model)
    expected, got = model(**inputs).logits, converted(**inputs).logits
    assert torch.allclose(got, expected, atol=1e-5)
    with model.disable_adapter():
        assert not torch.allclose(got, model(**inputs).logits, atol=1e-2)

    convert(["--back", str(tmp_path / "exported"), str(tmp_path / "back")])
    before, after = (load_file(f / "adapter_model.safetensors") for f in (folder, tmp_path / "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    again = PeftModel.from_pretrained(load_model(folder_of_base(folder)).model, tmp_path / "back").eval()
    assert torch.equal(again(**inputs).logits, expected)


def folder_of_base(folder) -> str:
    return json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]


def test_the_training_s_own_adapter_is_converted_whole_with_its_hash(trained_adapter, hf_base, tmp_path):
    convert([str(trained_adapter), str(tmp_path / "hf")])
    content = json.loads((tmp_path / "hf" / "adapter_config.json").read_text())
    assert {"self_attn.q_proj", "mlp.down_proj", "attention.projection_layer"} <= set(content["target_modules"])
    assert content["modules_to_save"] == ["model.multi_modal_projector"]
    assert content["base_model_name_or_path"] is None
    adapter_from_hf(Checkpoint(tmp_path / "hf", base=hf_base), tmp_path / "back")
    recorded = [json.loads((f / "adapter_config.json").read_text()) for f in (trained_adapter, tmp_path / "back")]
    for key in ("auto_mapping", "base_model_name_or_path", "r", "lora_alpha", "modules_to_save"):
        assert recorded[0][key] == recorded[1][key]


def test_query_key_and_value_trained_apart_are_refused_on_the_way_back(hf_base, tmp_path):
    model = get_peft_model(
        InternVLForConditionalGeneration.from_pretrained(hf_base),
        LoraConfig(r=4, target_modules=["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    )
    model.save_pretrained(tmp_path / "apart")
    with pytest.raises(UserError, match="have LoRA of their own.*tools/merge_lora.py"):
        adapter_from_hf(Checkpoint(tmp_path / "apart"), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_an_adapter_of_one_layout_is_not_taken_for_the_other(trained_adapter, hf_base, tmp_path):
    adapter_to_hf(Checkpoint(trained_adapter), tmp_path / "hf", hf_base=hf_base)
    with pytest.raises(UserError, match="has transformers' layout already"):
        adapter_to_hf(Checkpoint(tmp_path / "hf"), tmp_path / "twice")
    with pytest.raises(UserError, match="has the published layout already"):
        adapter_from_hf(Checkpoint(trained_adapter), tmp_path / "back")


@pytest.mark.parametrize("program", ["vllm", "lmdeploy"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (KINDS["dora"], "use_dora is true"),
        (KINDS["bias"], "lora_bias is true"),
        (KINDS["modules trained in full"], r"modules trained in full are in it \(\['mlp1'"),
        (KINDS["all-linear with the projector"], "there is LoRA on (mlp1.1|language_model.output)"),
        ({"target_modules": VISION}, "there is LoRA on vision_model"),
    ],
)
def test_what_servers_refuse_is_named_with_the_merge(program, settings, message, make_adapter, tmp_path, capsys):
    _, folder = make_adapter(**settings)
    with pytest.raises(SystemExit) as end:
        export([str(folder), str(tmp_path / "out"), "--for", program])
    stderr = capsys.readouterr().err
    assert end.value.code == 2 and "tools/merge_lora.py" in stderr and not (tmp_path / "out").exists()
    assert re.search(message, stderr), stderr


def test_vllm_takes_ours_as_it_is(make_adapter, tmp_path, capsys):
    _, folder = make_adapter(**KINDS["plain"])
    export([str(folder), str(tmp_path / "out"), "--for", "vllm"])
    assert "--max-lora-rank 8 " in capsys.readouterr().out
    before, after = (load_file(f / "adapter_model.safetensors") for f in (folder, tmp_path / "out"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_lmdeploy_gets_names_without_the_half_and_one_scaling(make_adapter, tmp_path):
    _, folder = make_adapter(target_modules=LANGUAGE, use_rslora=True)
    export([str(folder), str(tmp_path / "out"), "--for", "lmdeploy"])
    names = load_file(tmp_path / "out" / "adapter_model.safetensors").keys()
    assert "base_model.model.model.layers.0.attention.wqkv.lora_A.weight" in names
    assert not any("language_model" in name for name in names)
    content = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert content["target_modules"] == ["w1", "w2", "w3", "wo", "wqkv"] and not content["use_rslora"]
    assert content["lora_alpha"] / content["r"] == pytest.approx(12 / 8**0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank_pattern": {"layers.0.attention.wo": 4}}, "different ranks or scalings"),
        ({"layers_to_transform": [0], "layers_pattern": "layers"}, "has LoRA in 1 layers only"),
    ],
)
def test_lmdeploy_takes_one_rank_in_all_layers(settings, message, make_adapter, tmp_path, capsys):
    _, folder = make_adapter(target_modules=LANGUAGE, **settings)
    with pytest.raises(SystemExit):
        export([str(folder), str(tmp_path / "out"), "--for", "lmdeploy"])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights: is 'pissa'"),
        ({"peft_type": "LOHA"}, "peft_type: is 'LOHA'"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"bias": "all"}, "bias: is 'all'"),
        ({"r": 16}, "r: is 16, and the LoRA of .* has rank 8"),
        ({"lora_alpha": None}, "lora_alpha: is None"),
    ],
)
def test_what_is_not_exported_is_named(change, message, make_adapter, tmp_path):
    _, folder = make_adapter(**KINDS["plain"])
    file = folder / "adapter_config.json"
    write_json(file, {**json.loads(file.read_text()), **change})
    with pytest.raises(UserError, match=message):
        adapter_to_hf(Checkpoint(folder), tmp_path / "out")


def test_an_adapter_that_lacks_a_tensor_or_has_a_strange_one_is_refused(make_adapter, tmp_path):
    _, folder = make_adapter(**KINDS["plain"])
    tensors = load_file(folder / "adapter_model.safetensors")
    first = next(name for name in tensors if name.endswith("lora_B.weight"))
    save_file({name: t for name, t in tensors.items() if name != first}, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="lora_A.weight. but not lora_B beside it"):
        adapter_to_hf(Checkpoint(folder), tmp_path / "out")
    save_file({**tensors, "base_model.model.nowhere.weight": torch.zeros(1)}, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="nowhere.weight' is not a layer of"):
        adapter_to_hf(Checkpoint(folder), tmp_path / "out")


def test_modules_are_renamed_to_the_largest_that_hold_the_same():
    renames = {"a.b.0": ("x.y.p",), "a.b.1": ("x.y.q", "x.y.r"), "a.c": ("x.z",), "d": ("head",)}
    assert rename_modules(["a.b"], renames) == ["x.y"]
    assert rename_modules(["a.b.1"], renames) == ["x.y.q", "x.y.r"]
    assert rename_modules(["a", "d"], renames) == ["head", "x"]
