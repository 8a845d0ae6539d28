"""What trains, in words: counts that add up, and the state of each part."""

import json
import re

import pytest
import torch

from internvl.model.adapter import choose_trainable
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.loading import load_model
from internvl.model.trainable import describe_trainable

FROZEN = {"freeze_llm": True, "freeze_backbone": True, "freeze_mlp": True}


def states(model) -> dict[str, str]:
    """The state of each part by its name; the parts' weights add up to the base's."""
    head, *lines = describe_trainable(model).splitlines()
    trained, total = (int(number.replace(",", "")) for number in re.match(r"([\d,]+) of ([\d,]+)", head).groups())
    rows = [re.match(r"  (\D+?) +([\d,]+)  (.*)", line).groups() for line in lines]
    parameters = list(model.parameters())
    assert trained == sum(p.numel() for p in parameters if p.requires_grad)
    assert total == sum(p.numel() for p in parameters)
    lora = sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)
    assert sum(int(count.replace(",", "")) for _, count, _ in rows) == total - lora
    return {name: state for name, _, state in rows}


def test_lora_on_both_halves_beside_a_projector_that_trains(tiny_model):
    flags = {**FROZEN, "freeze_mlp": False, "use_llm_lora": 4, "use_backbone_lora": 2}
    found = states(choose_trainable(tiny_model[0], **flags))
    assert found["projector"] == "trains" and found["embeddings"] == found["output layer"] == "frozen"
    assert re.fullmatch(r"frozen, with [\d,]+ of LoRA on w1 w2 w3 wo wqkv", found["layers"])
    assert re.fullmatch(r"frozen, with [\d,]+ of LoRA on fc1 fc2 proj qkv", found["vision encoder"])


def test_a_language_model_that_trains_without_its_neighbours(tiny_model):
    found = states(choose_trainable(tiny_model[0], **{**FROZEN, "freeze_llm": False}))
    assert [found[name] for name in ("vision encoder", "layers", "output layer")] == ["frozen", "trains", "trains"]


def test_a_part_of_the_encoder_that_trains_is_counted(tiny_model):
    found = states(choose_trainable(tiny_model[0], **FROZEN, unfreeze_vit_layers=-1))
    assert re.fullmatch(r"[\d,]+ train", found["vision encoder"])


def test_an_output_layer_that_is_the_embeddings_is_there_once(tiny_member):
    model = load_model(tiny_member("qwen2")).model
    model.language_model.config.tie_word_embeddings = True
    model.language_model.get_output_embeddings().weight = model.language_model.get_input_embeddings().weight
    assert "output layer" not in states(choose_trainable(model, **FROZEN, use_llm_lora=2))


def test_the_published_size(shared):
    published = json.loads((shared / "reference" / "keys_2b.json").read_text())
    with torch.device("meta"):
        model = InternVLChatModel(InternVLChatConfig(**published["config_to_dict"]))
        choose_trainable(model, **FROZEN, use_llm_lora=128)
    assert describe_trainable(model).startswith("125,829,120 of ")


@pytest.mark.parametrize("member", ["qwen3"])
def test_names_of_another_language_model(tiny_member, member):
    found = states(choose_trainable(load_model(tiny_member(member)).model, **FROZEN, use_llm_lora=2))
    assert found["layers"].endswith("on down_proj gate_proj k_proj o_proj q_proj up_proj v_proj")
