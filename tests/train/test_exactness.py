"""Every way to save work gives the loss and the gradients of plain rows: shared images, packing, kept features."""

import pytest
import torch

from internvl.data.batch import Collator
from internvl.data.sampling import SampleGroup
from internvl.model.internvl_chat import causal_lm
from internvl.model.internvl_chat.causal_lm import IGNORE_INDEX
from internvl.model.vision_cache import VisionCache
from tests.train.conftest import NUM_ROWS
from tests.train.one_step import WAYS, Way, assert_equal, groups_of, step

LORA = (
    {"llm": 8}, {"llm": 8, "vit": 4}, {"llm": 0, "vit": 4}, {"member": "qwen2"}, {"member": "qwen3", "vit": 4},
)  # fmt: skip


@pytest.mark.parametrize("lora", LORA, ids=str)
@pytest.mark.parametrize("name", WAYS)
def test_loss_and_gradients_equal_those_of_plain_rows(name, lora, model_and_data):
    plain = step(*model_and_data(**lora), Way())
    assert_equal(step(*model_and_data(**lora), WAYS[name]), plain)


def test_the_plain_loss_is_that_of_a_slow_loop_over_tokens(model_and_data):
    model, tokenizer, data = model_and_data()
    total, count = 0.0, 0
    for row in (data[index] for index in range(NUM_ROWS)):
        inputs = Collator(tokenizer.pad_token_id, 56)([row]).model_inputs()
        with torch.no_grad():
            scores = model(**{**inputs, "labels": None}).logits[0].log_softmax(-1)
        for position in range(1, len(row.labels)):
            if row.labels[position] != IGNORE_INDEX:
                total -= scores[position - 1, row.labels[position]].item()
                count += 1
    assert step(*model_and_data(), Way(share=True))[0] == pytest.approx(total / count, rel=1e-5)


def test_sharing_saves_the_tokens_of_images_and_prompts(model_and_data):
    plain, shared = (step(*model_and_data(), Way(share=share, packed=True))[2] for share in (False, True))
    assert shared < 0.6 * plain


def test_a_loss_in_chunks_equals_the_whole_one(model_and_data, monkeypatch):
    whole = step(*model_and_data(), Way(share=True, batch_size=16))
    monkeypatch.setattr(causal_lm, "LOSS_CHUNK", 7)
    assert_equal(step(*model_and_data(), Way(share=True, batch_size=16)), whole)


@pytest.mark.parametrize("share", [False, True])
def test_kept_features_equal_computed_ones(share, model_and_data, tmp_path):
    model, tokenizer, data = model_and_data()
    cache = VisionCache(tmp_path, model, max_bytes=10**9)
    data.images.cache = cache
    first = step(model, tokenizer, data, Way(share=share, cache=cache))
    model, tokenizer, data = model_and_data()
    data.images.cache = VisionCache(tmp_path, model, max_bytes=10**9)
    groups = [SampleGroup(items, 0) for items in groups_of(data, share).groups]
    images = [image for group in groups for image in data[group].images]
    assert all(image.tiles is None and image.features.dtype == torch.bfloat16 for image in images)
    again = step(model, tokenizer, data, Way(share=share, cache=data.images.cache))
    assert again[0] == first[0] and all(torch.equal(again[1][name], first[1][name]) for name in first[1])
    # Rounding the features to bfloat16 is all that differs from plain rows: 2^-9 of each.
    plain = step(*model_and_data(), Way(share=share))
    assert first[0] == pytest.approx(plain[0], rel=1e-3)
