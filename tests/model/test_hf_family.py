"""Qwen members in transformers' own layout: its classes, processor and PEFT's adapters answer as ours do, and back."""

import json
from copy import deepcopy

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
)

from internvl.commands.convert_to_hf import main as convert
from internvl.model.adapter import choose_trainable, save_adapter
from internvl.model.checkpoint import Checkpoint
from internvl.model.hf_config import hf_config, original_config, parse_config
from internvl.model.hf_names import hf_names, split
from internvl.model.hf_view import published_tensors
from internvl.model.internvl_chat.conversation import TEMPLATES, Turn, join_segments, place_images, render_turns
from internvl.model.internvl_chat.image_processing_internvl_chat import InternVLChatImageProcessor
from internvl.model.loading import load_model
from internvl.model.packaging import write_chat_tokenizer
from tests.conftest import make_image
from tests.model.tiny_members import FROZEN, QWEN, randomize_lora


@pytest.fixture(scope="module", params=QWEN)
def member(request, tiny_member):
    return tiny_member(request.param)


@pytest.fixture(scope="module")
def converted(member, tmp_path_factory):
    """The tiny member in transformers' layout."""
    folder = tmp_path_factory.mktemp("hf") / "converted"
    convert([str(member), str(folder)])
    return folder


def prompt_of(model, tokenizer, processor_of_images, image):
    """Token ids (1, N) and tiles of a question about ``image`` as training renders it."""
    tiles = processor_of_images(image)["pixel_values"]
    turns = place_images([Turn("human", "<image>\nWhat is it?")], [model.num_image_token * len(tiles)])
    text = join_segments(render_turns(TEMPLATES[model.config.template], turns, add_generation_prompt=True))
    return text, tokenizer(text, return_tensors="pt").input_ids, tiles


def test_logits_gradients_and_greedy_answers_equal_transformers_own_classes(member, converted):
    model, tokenizer = load_model(member)
    theirs = AutoModelForImageTextToText.from_pretrained(converted)
    assert type(theirs).__name__ == "InternVLForConditionalGeneration"
    processor = AutoProcessor.from_pretrained(converted)
    processor.image_processor = AutoImageProcessor.from_pretrained(converted, backend="pil")
    image = make_image(120, 60, 2)
    text, ids, tiles = prompt_of(model, tokenizer, InternVLChatImageProcessor.from_pretrained(member), image)
    messages = [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]}
    ]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert inputs["input_ids"].tolist() == ids.tolist(), text
    assert torch.equal(inputs["pixel_values"], tiles)

    model.img_context_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    inputs = {"input_ids": ids, "pixel_values": tiles, "attention_mask": torch.ones_like(ids), "labels": ids}
    ours, hf = model(**inputs), theirs(**inputs)
    assert (ours.logits - hf.logits).abs().max() < 1e-5
    assert abs(ours.loss - hf.loss) < 1e-5
    ours.loss.backward()
    hf.loss.backward()
    layer = model.language_model.model.layers[0].self_attn.q_proj.weight.grad
    assert (layer - theirs.model.language_model.layers[0].self_attn.q_proj.weight.grad).abs().max() < 1e-5
    projector = model.mlp1[1].weight.grad
    assert (projector - theirs.model.multi_modal_projector.linear_1.weight.grad).abs().max() < 1e-5

    settings = {"max_new_tokens": 12, "do_sample": False}
    inputs = {"pixel_values": tiles, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    answers = [each.generate(**inputs, **settings)[0].tolist() for each in (model, theirs)]
    assert answers[0][-12:] == answers[1][ids.shape[1] :]


def test_the_way_back_gives_every_bit_and_every_setting(member, converted, tmp_path):
    convert(["--back", str(converted), str(tmp_path / "back")])
    before, after = (load_file(folder / "model.safetensors") for folder in (member, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for file in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        contents = [(folder / file).read_text(encoding="utf-8") for folder in (member, tmp_path / "back")]
        assert (
            contents[0] == contents[1]
            if file.endswith("jinja")
            else json.loads(contents[0]) == json.loads(contents[1])
        )


def test_an_adapter_goes_there_and_back(member, converted, tmp_path):
    model, tokenizer = load_model(member)
    whole = choose_trainable(model, **FROZEN, use_llm_lora=4, use_backbone_lora=2)
    randomize_lora(whole)
    base = {"base": member, "base_sha256": Checkpoint(member).sha256()}
    save_adapter(whole, tmp_path / "adapter", **base)
    write_chat_tokenizer(tmp_path / "adapter", tokenizer, model.config.template)
    convert([str(tmp_path / "adapter"), str(tmp_path / "hf_adapter")])
    theirs = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(converted), tmp_path / "hf_adapter")
    ours, _ = load_model(tmp_path / "adapter")
    _, ids, tiles = prompt_of(
        ours, tokenizer, InternVLChatImageProcessor.from_pretrained(member), make_image(90, 90, 1)
    )
    ours.img_context_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    inputs = {"input_ids": ids, "pixel_values": tiles, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        got, expected = ours(**inputs).logits, theirs.eval()(**inputs).logits
    assert (got - expected).abs().max() < 1e-5
    convert(["--back", "--base", str(member), str(tmp_path / "hf_adapter"), str(tmp_path / "back")])
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


PUBLISHED = {
    "InternVL3-1B": "InternVL3-1B-hf",
    "InternVL3-2B": "InternVL3-2B-hf",
    "InternVL3-8B": "InternVL3-8B-hf",
    "InternVL3_5-1B": "InternVL3_5-1B-HF",
    "InternVL3_5-2B": "InternVL3_5-2B-HF",
    "InternVL3_5-4B": "InternVL3_5-4B-HF",
    "InternVL3_5-8B": "InternVL3_5-8B-HF",
}
# Where the derived files differ among themselves, or say what transformers takes from generation_config.json.
NOT_COMPARED = {
    "_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "max_window_layers", "rope_scaling",
    "rope_theta", "sliding_window", "torch_dtype", "transformers_version", "use_cache", "max_position_embeddings",
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_member_gets_the_names_shapes_and_settings_of_its_published_hf_form(name, shared):
    file = next(
        file for kind in ("", ".derived") if (file := shared / "family" / name / f"config{kind}.json").is_file()
    )
    published = json.loads(file.read_text(encoding="utf-8"))
    theirs = json.loads((shared / "family" / PUBLISHED[name] / "config.derived.json").read_text(encoding="utf-8"))
    config = parse_config(published)
    content = hf_config(config, {"config": published}, image_token_id=theirs["image_token_id"], dtype="bfloat16")
    for key, value in theirs["text_config"].items():
        assert key in NOT_COMPARED or content["text_config"][key] == value, key
    assert content["image_seq_length"] == theirs["image_seq_length"]
    with torch.device("meta"):
        expected = InternVLForConditionalGeneration(InternVLConfig.from_dict(deepcopy(theirs))).state_dict()
    found = {}
    for key, tensor in published_tensors(config).items():
        found.update(zip(hf_names(key), split(key, tensor, config), strict=True))
    assert {key: tensor.shape for key, tensor in found.items()} == {key: t.shape for key, t in expected.items()}
    assert original_config(json.loads(json.dumps(content)), file) == published
