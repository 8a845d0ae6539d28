"""The model on its own: shapes, image tokens, caching, padding, generation."""

import pytest
import torch

from internvl.model.internvl_chat import modeling_internvl_chat
from internvl.model.internvl_chat.image_processing_internvl_chat import normalize_pixels
from internvl.model.internvl_chat.modeling_internlm2 import split_wqkv
from internvl.model.internvl_chat.modeling_internvl_chat import pixel_unshuffle
from internvl.model.internvl_chat.rotary import rotary_cos_sin
from internvl.model.loading import load_model


def batch(model, tokenizer, num_tiles=(1, 2), text_lengths=(9, 5)):
    """Right-padded rows of some tiles and some text, with labels on the last three tokens of each."""
    per_tile, rows = model.num_image_token, []
    for tiles, length in zip(num_tiles, text_lengths, strict=True):
        rows.append([1] + [model.img_context_token_id] * (tiles * per_tile) + list(range(50, 50 + length)))
    width = max(map(len, rows))
    ids = torch.tensor([row + [2] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    labels = torch.full_like(ids, -100)
    for number, row in enumerate(rows):
        labels[number, len(row) - 3 : len(row)] = ids[number, len(row) - 3 : len(row)]
    pixels = torch.randn(sum(num_tiles), 3, 56, 56)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask, "labels": labels}


def test_a_tile_becomes_its_image_tokens(tiny_model):
    model, _ = tiny_model
    features = model.extract_feature(torch.randn(3, 3, 56, 56))
    assert features.shape == (3, model.num_image_token, 64) == (3, 4, 64)


@pytest.mark.parametrize("num_tiles", [1, 3])
def test_unequal_image_tokens_and_features_raise_with_both_counts(tiny_model, num_tiles):
    model, tokenizer = tiny_model
    inputs = batch(model, tokenizer, (2,), (5,))
    inputs["pixel_values"] = torch.randn(num_tiles, 3, 56, 56)
    with pytest.raises(ValueError, match=rf"8 <IMG_CONTEXT> tokens but the images give {4 * num_tiles} features"):
        model(**inputs)


def test_a_dummy_tile_changes_nothing_and_still_reaches_the_vision_encoder(tiny_model):
    model, _ = tiny_model
    ids = torch.arange(40, 60)[None]
    plain = model(input_ids=ids, labels=ids)
    dummy = model(pixel_values=torch.randn(1, 3, 56, 56), image_flags=torch.tensor([0]), input_ids=ids, labels=ids)
    assert torch.equal(plain.loss, dummy.loss)
    dummy.loss.backward()
    gradient = model.vision_model.embeddings.patch_embedding.weight.grad
    assert gradient is not None and gradient.abs().max() == 0


def test_padding_does_not_change_a_row(tiny_model):
    model, tokenizer = tiny_model
    both = batch(model, tokenizer)
    alone = batch(model, tokenizer, (1,), (9,))
    alone["pixel_values"] = both["pixel_values"][:1]
    length = alone["input_ids"].shape[1]
    logits = model(**both).logits[0, :length]
    assert torch.allclose(logits, model(**alone).logits[0], atol=1e-5)


def test_loss_equals_cross_entropy_of_the_full_logits(tiny_model):
    model, tokenizer = tiny_model
    inputs = batch(model, tokenizer)
    output = model(**inputs)
    expected = torch.nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten(), ignore_index=-100
    )
    assert torch.allclose(output.loss, expected, atol=1e-6)
    lean = model(**inputs, return_logits=False)
    assert lean.logits is None and torch.equal(lean.loss, output.loss)
    assert torch.allclose(model(**inputs, num_items_in_batch=12).loss * 12, expected * 6, atol=1e-5)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_attention_kernels_agree(tiny_base, tiny_model, kernel):
    model, tokenizer = tiny_model
    inputs = batch(model, tokenizer)
    other = load_model(tiny_base, attn_implementation=kernel).model
    mask = inputs["attention_mask"].bool()
    assert torch.allclose(model(**inputs).logits[mask], other(**inputs).logits[mask], atol=1e-4)


def test_gradient_checkpointing_changes_no_gradient(tiny_base):
    gradients = []
    for checkpointing in (False, True):
        model, tokenizer = load_model(tiny_base)
        torch.manual_seed(0)
        inputs = batch(model, tokenizer)
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model(**inputs).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])


def test_generation_with_cache_equals_a_plain_loop_without(tiny_model):
    model, tokenizer = tiny_model
    inputs = batch(model, tokenizer, (2,), (6,))
    generated = model.generate(
        pixel_values=inputs["pixel_values"],
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=10,
        do_sample=False,
        eos_token_id=399,
    )[0].tolist()
    ids = inputs["input_ids"]
    for _ in range(10):
        logits = model(pixel_values=inputs["pixel_values"], input_ids=ids).logits[0, -1]
        ids = torch.cat([ids, logits.argmax().view(1, 1)], dim=1)
    assert generated == ids[0, inputs["input_ids"].shape[1] :].tolist()


def test_answers_do_not_depend_on_the_batch(tiny_model):
    model, tokenizer = tiny_model
    pixels = torch.randn(4, 3, 56, 56)
    questions, tiles = ["What?", "Describe the pattern of the image at length.", "And this?"], [1, 2, 1]
    settings = {"max_new_tokens": 12, "do_sample": False}
    together = model.batch_chat(tokenizer, pixels, questions, settings, num_patches_list=tiles)
    start, apart = 0, []
    for question, number in zip(questions, tiles, strict=True):
        apart.append(model.chat(tokenizer, pixels[start : start + number], question, settings))
        start += number
    assert together == apart


def test_chat_keeps_history_and_leaves_the_callers_settings_alone(tiny_model):
    model, tokenizer = tiny_model
    settings = {"max_new_tokens": 4, "do_sample": False}
    answer, history = model.chat(tokenizer, torch.randn(1, 3, 56, 56), "What?", settings, return_history=True)
    assert history == [("<image>\nWhat?", answer)]
    assert settings == {"max_new_tokens": 4, "do_sample": False}
    _, history = model.chat(
        tokenizer, torch.randn(1, 3, 56, 56), "Sure?", settings, history=history, return_history=True
    )
    assert [question for question, _ in history] == ["<image>\nWhat?", "Sure?"]


def test_wqkv_is_grouped_by_key_value_head():
    heads, groups, width = 4, 2, 3
    numbered = torch.arange((heads + 2 * groups) * width).view(1, 1, -1)
    query, key, value = split_wqkv(numbered, heads, groups)
    # The layout written out: q0 q1 k0 v0 q2 q3 k1 v1.
    blocks = numbered.view(-1, width)
    assert torch.equal(query[0, :, 0], blocks[[0, 1, 4, 5]])
    assert torch.equal(key[0, :, 0], blocks[[2, 6]])
    assert torch.equal(value[0, :, 0], blocks[[3, 7]])


def test_unshuffle_versions_differ_by_swapping_rows_and_columns():
    features = torch.randn(2, 4, 4, 8)
    v1, v2 = pixel_unshuffle(features, 0.5, "v1"), pixel_unshuffle(features, 0.5, "v2")
    assert v2.shape == (2, 2, 2, 32)
    assert torch.equal(v1.transpose(1, 2), v2)
    # A plain loop: the token at (row, column) holds the four patches of its 2 × 2 block, row by row.
    for row in range(2):
        for column in range(2):
            block = features[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(v2[0, row, column], block.reshape(-1))


def test_dynamic_rope_starts_beyond_the_limit_and_keeps_no_state(tiny_model):
    config = tiny_model.model.config.llm_config
    positions = torch.arange(6)[None]
    at_limit = rotary_cos_sin(config, positions, config.max_position_embeddings, torch.float32)
    beyond = rotary_cos_sin(config, positions, 2 * config.max_position_embeddings, torch.float32)
    again = rotary_cos_sin(config, positions, 6, torch.float32)
    assert not torch.equal(at_limit[0], beyond[0])
    assert torch.equal(at_limit[0], again[0])


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
def test_prompts_are_read_once_whatever_is_made_of_them(tiny_model, settings, monkeypatch):
    model, tokenizer = tiny_model
    prompts = ["Say.", "Describe it with more words, please."]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "eos_token_id": 2, "pad_token_id": 2, **settings}
    embeddings = model.embed(inputs["input_ids"], None)
    torch.manual_seed(1)
    expected = model.language_model.generate(
        inputs_embeds=embeddings, attention_mask=inputs["attention_mask"], **options
    )
    seen = []
    forward = model.language_model.model.forward

    def count(*args, **kwargs):
        given = kwargs["input_ids"] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        seen.append(tuple(given.shape[:2]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.language_model.model, "forward", count)
    torch.manual_seed(1)
    got = model.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **options)
    assert torch.equal(got, expected)
    rows, length = embeddings.shape[:2]
    assert seen[0] == (rows, length - 1) and all(tokens == 1 for _, tokens in seen[1:])


def test_bytes_are_normalised_as_the_processor_does(tiny_model):
    model, _ = tiny_model
    tiles = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    assert torch.equal(model.extract_feature(tiles), model.extract_feature(normalize_pixels(tiles)))


def test_a_frozen_encoder_takes_tiles_in_parts_and_keeps_nothing(tiny_model, monkeypatch):
    model, _ = tiny_model
    tiles = torch.randint(0, 256, (5, 3, 56, 56), dtype=torch.uint8)
    whole = model.extract_feature(tiles)
    assert whole.requires_grad, "everything trains"
    model.vision_model.requires_grad_(False)
    monkeypatch.setattr(modeling_internvl_chat, "VISION_BATCH", 2)
    parts = model.extract_feature(tiles)
    assert torch.allclose(parts, whole, atol=1e-6) and parts.requires_grad, "the projector still trains"
    model.mlp1.requires_grad_(False)
    assert not model.extract_feature(tiles).requires_grad
