"""Freezing, LoRA and adapter folders, against PEFT itself and the published names."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from internvl.commands.merge_lora import main as merge_lora
from internvl.errors import UserError
from internvl.model.adapter import choose_trainable, embedded_name, save_adapter
from internvl.model.checkpoint import Checkpoint
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.loading import load_model


def trained(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("flags", "prefixes"),
    [
        ({}, ["vision_model.", "mlp1.", "language_model."]),
        ({"freeze_backbone": True}, ["mlp1.", "language_model."]),
        ({"freeze_llm": True}, ["vision_model.", "mlp1."]),
        ({"freeze_mlp": True}, ["vision_model.", "language_model."]),
        ({"freeze_llm": True, "freeze_backbone": True, "freeze_mlp": True, "unfreeze_lm_head": True},
         ["language_model.output."]),
        ({"freeze_llm": True, "freeze_backbone": True, "freeze_mlp": True, "unfreeze_vit_layers": -1},
         ["vision_model.encoder.layers.2."]),
    ],
)  # fmt: skip
def test_each_freeze_flag_changes_what_trains(tiny_model, flags, prefixes):
    model, _ = tiny_model
    choose_trainable(model, **flags)
    expected = {name for name, _ in model.named_parameters() if name.startswith(tuple(prefixes))}
    assert trained(model) == expected != set()


def test_freezing_everything_is_refused(tiny_model):
    with pytest.raises(UserError, match="everything is frozen"):
        choose_trainable(tiny_model.model, freeze_llm=True, freeze_backbone=True, freeze_mlp=True)


def test_lora_adds_exactly_its_pairs(tiny_model):
    model, _ = tiny_model
    choose_trainable(
        model, freeze_llm=True, freeze_backbone=True, freeze_mlp=True, use_llm_lora=4, use_backbone_lora=2
    )
    names = trained(model)
    assert len(names) == 2 * (5 * 2 + 4 * 3)  # A and B of 5 layers in 2 LLM blocks and 4 in 3 vision blocks
    assert all(".lora_A.default." in name or ".lora_B.default." in name for name in names)


def test_full_size_model_has_the_published_keys_and_trainable_names(shared):
    published = json.loads((shared / "reference" / "keys_2b.json").read_text())
    setup = json.loads((shared / "reference" / "trainable_2b_habitat.json").read_text())
    with torch.device("meta"):
        model = InternVLChatModel(InternVLChatConfig(**published["config_to_dict"]))
        assert list(model.state_dict()) == published["state_dict_keys"]
        assert {n: list(p.shape) for n, p in model.named_parameters()} == {
            name: shape for name, (shape, _) in published["parameters"].items()
        }
        choose_trainable(model, freeze_llm=True, freeze_backbone=True, freeze_mlp=True, use_llm_lora=128)
    trained = [embedded_name(n, model.config) for n, p in model.named_parameters() if p.requires_grad]
    assert trained == setup["trainable"]


def test_adapter_gives_the_same_logits_through_our_loader_and_through_peft(tiny_base, trained_adapter):
    ids = torch.arange(40, 70)[None]
    ours = load_model(trained_adapter).model
    base = load_model(tiny_base).model
    before = base(input_ids=ids).logits
    peft = PeftModel.from_pretrained(base, trained_adapter).eval()
    pixels = torch.randn(1, 3, 56, 56)
    ids[0, 3:7] = ours.img_context_token_id
    got, expected = (m(pixel_values=pixels, input_ids=ids).logits for m in (ours, peft))
    assert torch.allclose(got, expected, atol=1e-5)
    assert not torch.allclose(got, before, atol=1e-2)


def test_adapter_records_base_and_hash_and_holds_only_what_trained(tiny_base, trained_adapter):
    config = json.loads((trained_adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_base)
    assert len(config["auto_mapping"]["base_model_sha256"]) == 64
    assert config["modules_to_save"] == ["mlp1"]
    names = set(load_file(trained_adapter / "adapter_model.safetensors"))
    assert all("lora_" in name or ".mlp1." in name for name in names)


def test_adapter_of_another_base_is_refused(trained_adapter, tmp_path, rows_folder):
    from make_tiny_base import make_tiny_base

    make_tiny_base(
        tmp_path / "wide",
        [rows_folder / "train.jsonl"],
        vocab_size=400,
        image_size=56,
        patch_size=14,
        width=96,
        layers=2,
    )
    config = json.loads((trained_adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "wide")
    (trained_adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="Use the base it was trained on"):
        load_model(trained_adapter)


def test_a_base_layer_that_trains_beside_its_lora_is_saved_loaded_and_merged_with_it(tiny_base, tmp_path):
    model, tokenizer = load_model(tiny_base)
    flags = {"freeze_llm": True, "freeze_backbone": True, "freeze_mlp": True}
    choose_trainable(model, **flags, use_backbone_lora=2, unfreeze_vit_layers=-1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    folder, merged = tmp_path / "adapter", tmp_path / "merged"
    save_adapter(model, folder, base=tiny_base, base_sha256=Checkpoint(tiny_base).sha256())
    tokenizer.save_pretrained(folder)
    saved = json.loads((folder / "adapter_config.json").read_text())["modules_to_save"]
    assert "vision_model.encoder.layers.2.norm1" in saved and "vision_model.encoder.layers.2" not in saved
    merge_lora([str(folder), str(merged)])  # which PEFT checks, so it reads the adapter, too
    pixels, ids = torch.randn(1, 3, 56, 56), torch.arange(40, 70)[None]
    ids[0, 3:7] = model.img_context_token_id
    with torch.no_grad():
        expected = model.eval()(pixel_values=pixels, input_ids=ids).logits
        for checkpoint in (folder, merged):
            logits = load_model(checkpoint).model(pixel_values=pixels, input_ids=ids).logits
            assert torch.allclose(logits, expected, atol=1e-5)
