"""The order of rows: every row once, and the same rows in a step however a batch is split."""

import json

import pytest
import torch

from internvl.data.sampling import LengthGroupedSampler, group_by_length

LENGTHS = [(index * 37) % 101 + 5 for index in range(50)]


@pytest.mark.parametrize(("batch_size", "num_batches"), [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_steps_hold_the_same_rows_however_they_are_split(batch_size, num_batches):
    def steps(size, number):
        order = list(LengthGroupedSampler(LENGTHS, batch_size=size, num_batches=number, seed=3))
        assert sorted(order) == list(range(50))
        return [set(order[start : start + 8]) for start in range(0, 50, 8)]

    assert steps(batch_size, num_batches) == steps(8, 1)


def test_each_epoch_is_shuffled_anew():
    sampler = LengthGroupedSampler(LENGTHS, batch_size=4, num_batches=2)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_order_equals_the_originals(shared):
    cases = json.loads((shared / "reference" / "dataset" / "length_grouped_sampler.json").read_text())
    for case in cases:
        generator = torch.Generator().manual_seed(case["torch_generator_seed"])
        order = group_by_length(case["lengths"], case["batch_size"], case["world_size"], generator)
        assert order == case["indices"]
