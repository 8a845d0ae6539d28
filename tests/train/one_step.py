"""One optimizer step over rows of a data set in every way there is, with its loss and gradients."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from internvl.data.batch import Collator
from internvl.data.checking import check_dataset
from internvl.data.grouping import group_rows, sharing_keys, single_rows
from internvl.data.sampling import MicroBatchSampler, choose_strategy
from internvl.model.vision_cache import image_features
from internvl.train.memory import recompute_activations

MAX_LENGTH = 700


@dataclass
class Way:
    """How the rows of a step go through the model."""

    share: bool = False
    packed: bool = False
    batch_size: int = 4
    recompute: int = 0
    cache: object = None


def groups_of(data, share: bool):
    check = check_dataset(data)
    row_stats, lengths = check.row_stats(data.index), check.lengths(data.index)
    if not share:
        return single_rows(lengths)
    zeros = np.zeros(len(lengths), np.int64)
    keys = sharing_keys(data.index, row_stats, zeros, zeros == 0)
    return group_rows(keys, lengths, row_stats["image_tokens"], max_rows=len(lengths), max_tokens=MAX_LENGTH)


def step(model, tokenizer, data, way: Way) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss and gradients of one optimizer step over all rows, and the tokens that went through the language model."""
    groups = groups_of(data, way.share)
    budget = way.batch_size * max(check_dataset(data).lengths(data.index))
    sampler = MicroBatchSampler(
        groups.groups,
        groups.num_tokens,
        batch_size=way.batch_size,
        num_batches=-(-len(data) // way.batch_size),
        strategy=choose_strategy(groups.groups, budget if way.packed else None),
    )
    packed = way.share or way.packed
    collate = Collator(tokenizer.pad_token_id, 56, packed=packed, keep_images=way.cache is not None)
    recompute_activations(model, way.recompute)
    batches = [collate([data[group] for group in chosen]) for chosen in sampler]
    supervised = sum(batch.supervised_weight for batch in batches).to(model.device)
    total, tokens = 0.0, 0
    for batch in batches:
        if batch.is_idle:
            continue
        batch = batch.to(model.device)
        features = None if way.cache is None else image_features(model, batch.images, way.cache)
        loss = model(**batch.model_inputs(features), num_items_in_batch=supervised, return_logits=False).loss
        loss.backward()
        total += loss.item()
        tokens += batch["input_ids"].numel()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return total, gradients, tokens


def assert_equal(got, expected, of_loss=1e-5):
    """Loss and gradients are those expected; float32 sums in another order leave 1e-5 of the largest gradient."""
    assert got[0] == pytest.approx(expected[0], rel=of_loss)
    assert got[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
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
