"""The order of rows: every row once, and the same rows in a step however a batch is split."""

import json

import numpy as np
import pytest
import torch

from internvl.data.sampling import MicroBatchSampler, best_fit, choose_strategy, group_by_length

LENGTHS = [(index * 37) % 101 + 5 for index in range(50)]
ROWS = [(index,) for index in range(50)]
# 50 rows in 14 groups of 1 to 7, and the tokens of each.
GROUPS = [tuple(range(start, stop)) for start, stop in zip(*(lambda ends: ([0, *ends[:-1]], ends))(
    [5, 10, 11, 17, 22, 24, 29, 34, 35, 40, 43, 44, 49, 50]), strict=True)]  # fmt: skip
NUM_TOKENS = [100 + 20 * len(group) for group in GROUPS]


def micro_batches(groups, num_tokens, *, world_size=1, max_tokens=None, **options) -> list[list[list[list[int]]]]:
    """Steps → micro-batches → processes → rows of an epoch; None where nobody has anything to do."""
    options = {"world_size": world_size, "strategy": choose_strategy(groups, max_tokens), "seed": 3, **options}
    samplers = [MicroBatchSampler(groups, num_tokens, rank=rank, **options) for rank in range(world_size)]
    shares = [list(sampler) for sampler in samplers]
    assert {len(share) for share in shares} == {len(samplers[0])}
    per_step = options["num_batches"] // world_size
    rounds = [
        [[row for group in batch for row in group.items] for batch in batches] for batches in zip(*shares, strict=True)
    ]
    for number, batches in enumerate(zip(*shares, strict=True)):
        idle = [batch for batch in batches if batch and not batch[0].items]
        assert len(idle) in (0, world_size), "a rank is idle when all are"
        if (number + 1) % per_step == 0:
            assert not idle, "gradients are averaged in the last micro-batch"
    return [rounds[start : start + per_step] for start in range(0, len(rounds), per_step)]


def rows_of(step) -> list[int]:
    return sorted(row for batches in step for rows in batches for row in rows)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(("batch_size", "num_batches"), [(8, 2), (4, 4), (2, 8)])
def test_steps_hold_the_same_rows_however_they_are_split(batch_size, num_batches, world_size):
    whole = micro_batches(ROWS, LENGTHS, batch_size=16, num_batches=1)
    steps = micro_batches(ROWS, LENGTHS, batch_size=batch_size, num_batches=num_batches, world_size=world_size)
    assert [rows_of(step) for step in steps] == [rows_of(step) for step in whole]
    assert sorted(row for step in steps for row in rows_of(step)) == list(range(50)), "every row once"
    assert all(len(rows) == batch_size for step in steps[:-1] for batches in step for rows in batches)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(("batch_size", "num_batches"), [(8, 2), (4, 4)])
def test_groups_stay_whole_and_an_epoch_keeps_its_steps(batch_size, num_batches, world_size, packed):
    options = {"batch_size": batch_size, "num_batches": num_batches, "world_size": world_size}
    options["max_tokens"] = batch_size * 120 if packed else None
    steps = micro_batches(GROUPS, NUM_TOKENS, **options)
    assert len(steps) == len(micro_batches(ROWS, LENGTHS, **options)) == 4
    batches = [set(rows) for step in steps for batches in step for rows in batches]
    assert all(sum(set(group) <= batch for batch in batches) == 1 for group in GROUPS)
    assert sum(len(batch) for batch in batches) == 50, "every row once"
    assert all(16 - 7 < len(rows_of(step)) < 16 + 7 for step in steps[:-1])


def test_packing_takes_as_few_micro_batches_as_the_longest_rows_would_fill():
    lengths = [100] * 2 + [10] * 48
    steps = micro_batches(ROWS, lengths, batch_size=2, num_batches=8, max_tokens=200)
    used = [[rows for batches in step for rows in batches if rows] for step in steps]
    assert all(sum(lengths[row] for row in rows) <= 200 for step in used for rows in step)
    assert max(len(step) for step in used) <= 2, "16 rows of at most 100 + 100 + 14 · 10 tokens in places of 200"


def test_best_fit_fills_the_fullest_place_that_has_room():
    num_tokens = [60, 50, 40, 30, 20]
    assert best_fit([0, 1, 2, 3, 4], num_tokens, 100) == [[0, 2], [1, 3, 4]]


def test_each_epoch_is_shuffled_anew():
    sampler = MicroBatchSampler(ROWS, LENGTHS, batch_size=4, num_batches=2)
    first = [[group.items for group in batch] for batch in sampler]
    sampler.set_epoch(1)
    assert [[group.items for group in batch] for batch in sampler] != first
    sampler.set_epoch(0)
    assert [[group.items for group in batch] for batch in sampler] == first


def test_order_equals_the_originals(shared):
    cases = json.loads((shared / "reference" / "dataset" / "length_grouped_sampler.json").read_text())
    for case in cases:
        generator = torch.Generator().manual_seed(case["torch_generator_seed"])
        order = group_by_length(case["lengths"], case["batch_size"], case["world_size"], generator)
        assert order == case["indices"]


@pytest.mark.parametrize("num_groups", [1, 7, 64, 501])
@pytest.mark.parametrize("rows_per_step", [1, 4, 9])
def test_steps_are_those_of_a_plain_loop(num_groups, rows_per_step):
    rng = np.random.default_rng(num_groups)
    sizes = rng.integers(1, rows_per_step + 1, num_groups)  # a group is never larger than a step
    ends = sizes.cumsum()
    groups = [tuple(range(end - size, end)) for size, end in zip(sizes.tolist(), ends.tolist(), strict=True)]
    sampler = MicroBatchSampler(groups, [10] * num_groups, batch_size=1, num_batches=rows_per_step, seed=3)
    expected: list[list[int]] = [[] for _ in range(sampler.num_steps)]
    start = 0
    for number in torch.randperm(num_groups, generator=torch.Generator().manual_seed(3)).tolist():
        expected[start // rows_per_step].append(number)
        start += len(groups[number])
    for last in range(sampler.num_steps - 1, 0, -1):
        if not expected[last]:
            expected[last].append(expected[last - 1].pop())
    assert [step.tolist() for step in sampler.steps()] == expected
