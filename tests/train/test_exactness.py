"""Every way to save work gives the loss and the gradients of plain rows: shared images, packing, kept features."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from internvl.data.batch import Collator
from internvl.data.checking import check_dataset
from internvl.data.dataset import ConversationDataset
from internvl.data.grouping import group_rows, sharing_keys, single_rows
from internvl.data.meta import DatasetSpec
from internvl.data.sampling import MicroBatchSampler, choose_strategy
from internvl.data.tokenize import RenderSettings
from internvl.model.adapter import choose_trainable
from internvl.model.internvl_chat import causal_lm
from internvl.model.internvl_chat.causal_lm import IGNORE_INDEX
from internvl.model.internvl_chat.conversation import get_conv_template
from internvl.model.loading import load_model
from internvl.model.lora_recipe import LoraRecipe
from internvl.model.vision_cache import VisionCache, image_features
from internvl.train.memory import recompute_activations
from tests.conftest import make_image

NUM_ROWS = 16


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    """16 rows: five captions of one image, questions of two kinds about another, two images, text, a lone row."""
    folder = tmp_path_factory.mktemp("captions")
    for number, size in enumerate([(60, 60), (130, 60), (90, 130)]):
        make_image(*size, number).save(folder / f"{number}.png")
    rows = []

    def add(question, answer, image=None, **fields):
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}, *fields.get("more", [])]
        rows.append({"conversations": turns, **({"image": image} if image else {})})

    for number in range(5):
        add("<image>\nDescribe it.", "Pattern with " + "many " * number + "waves.", "1.png")
    for number in range(3):
        add("<image>\nHow many colours?", f"Pattern has {number + 1}.", "2.png")
        add("<image>\nAre there waves?", "many waves", "2.png")
    more = [{"from": "human", "value": "And plus one?"}, {"from": "gpt", "value": "has 3."}]
    add("<image>\nDescribe it.", "Pattern again.", "2.png", more=more)
    add("<image><image>\nCompare them.", "many colours and waves", ["0.png", "1.png"])
    add("<image><image>\nCompare them.", "colours", ["0.png", "1.png"])
    add("What is 3 plus one?", "Pattern 3 has 4 " * 9)
    add("<image>\nDescribe it.", "waves.", "0.png")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(rows) == NUM_ROWS
    return folder


@dataclass
class Way:
    """How the rows of a step go through the model."""

    share: bool = False
    packed: bool = False
    batch_size: int = 4
    recompute: int = 0
    cache: object = None


@pytest.fixture
def model_and_data(tiny_member, captions):
    def make(llm=8, vit=0, member="internlm2", **way):
        base = tiny_member(member)  # which draws numbers when it is made
        torch.manual_seed(0)
        model, tokenizer = load_model(base)
        choose_trainable(
            model,
            freeze_llm=True,
            freeze_backbone=True,
            freeze_mlp=True,
            use_llm_lora=llm,
            use_backbone_lora=vit,
            lora=LoraRecipe(dropout=0.0),
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)  # zero at first: nothing would reach lora_A
        settings = RenderSettings(
            template=get_conv_template(model.config.template), image_size=56, num_image_token=4, max_seq_length=700
        )
        data = ConversationDataset(
            [DatasetSpec("rows", captions, (captions / "rows.jsonl",))], tokenizer, settings, vision_cache=way.get("c")
        )
        return model.train(), tokenizer, data

    return make


def groups_of(data, share: bool):
    check = check_dataset(data)
    row_stats, lengths = check.row_stats(data.index), check.lengths(data.index)
    if not share:
        return single_rows(lengths)
    zeros = np.zeros(len(lengths), np.int64)
    keys = sharing_keys(data.index, row_stats, zeros, zeros == 0)
    return group_rows(keys, lengths, row_stats["image_tokens"], max_rows=NUM_ROWS, max_tokens=700)


def step(model, tokenizer, data, way: Way) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss and gradients of one optimizer step over all rows, and the tokens that went through the language model."""
    groups = groups_of(data, way.share)
    budget = way.batch_size * max(check_dataset(data).lengths(data.index))
    sampler = MicroBatchSampler(
        groups.groups,
        groups.num_tokens,
        batch_size=way.batch_size,
        num_batches=NUM_ROWS // way.batch_size,
        strategy=choose_strategy(groups.groups, budget if way.packed else None),
    )
    packed = way.share or way.packed
    collate = Collator(tokenizer.pad_token_id, 56, packed=packed, keep_images=way.cache is not None)
    recompute_activations(model, way.recompute)
    batches = [collate([data[group] for group in chosen]) for chosen in sampler]
    supervised = sum(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in batches)
    total, tokens = 0.0, 0
    for batch in batches:
        if batch.is_idle:
            continue
        features = None if way.cache is None else image_features(model, batch.images, way.cache)
        loss = model(**batch.model_inputs(features), num_items_in_batch=supervised, return_logits=False).loss
        loss.backward()
        total += loss.item()
        tokens += batch["input_ids"].numel()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return total, gradients, tokens


def assert_equal(got, expected):
    assert got[0] == pytest.approx(expected[0], rel=1e-5)
    assert got[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        # fp32 sums in another order: against the largest gradient of the tensor.
        assert (got[1][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


WAYS = {
    "shared": Way(share=True),
    "shared, all at once": Way(share=True, batch_size=16),
    "packed": Way(packed=True),
    "packed, all at once": Way(packed=True, batch_size=16),
    "shared and packed": Way(share=True, packed=True),
    "recomputed": Way(recompute=2),
    "shared, packed and partly recomputed": Way(share=True, packed=True, recompute=1),
}


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
    images = [image for index in range(NUM_ROWS) for image in data[index].images]
    assert all(image.tiles is None and image.features.dtype == torch.bfloat16 for image in images)
    again = step(model, tokenizer, data, Way(share=share, cache=data.images.cache))
    assert again[0] == first[0] and all(torch.equal(again[1][name], first[1][name]) for name in first[1])
    # Rounding the features to bfloat16 is all that differs from plain rows: 2^-9 of each.
    plain = step(*model_and_data(), Way(share=share))
    assert first[0] == pytest.approx(plain[0], rel=1e-3)
