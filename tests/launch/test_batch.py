"""The batch arithmetic against plain Python."""

import itertools

import pytest

from internvl.errors import UserError
from internvl.launch.batch import divide_batch

CASES = list(itertools.product([1, 2, 6, 10, 16, 512], [1, 3, 4, 5, 40], [1, 2, 8], [1, 2]))
NAMES = ("BATCH_SIZE", "PER_DEVICE_BATCH_SIZE", "GPUS", "NNODES")


def nearest_per_device(batch_size: int, per_device: int, processes: int) -> int | None:
    """The nearest PER_DEVICE_BATCH_SIZE that divides; the smaller one of two."""
    candidates = [n for n in range(1, batch_size + 1) if batch_size % (n * processes) == 0]
    return min(candidates, key=lambda n: (abs(n - min(per_device, batch_size // processes)), n), default=None)


@pytest.mark.parametrize(("batch_size", "per_device", "gpus", "nodes"), CASES)
def test_division_table(batch_size, per_device, gpus, nodes):
    numbers = tuple(map(str, (batch_size, per_device, gpus, nodes)))
    rows = per_device * gpus * nodes
    if batch_size % rows == 0:
        assert divide_batch(*numbers).steps == batch_size // rows
        return
    with pytest.raises(UserError, match=f"{batch_size} / {rows} is not whole") as refused:
        divide_batch(*numbers)
    advice = str(refused.value).rpartition("Use ")[2]
    around = [n for n in (batch_size // rows * rows, batch_size // rows * rows + rows) if n]
    named = [word.strip(",.") for word in advice.split() if word.startswith("BATCH_SIZE=")]
    assert named == [f"BATCH_SIZE={n}" for n in around]
    other = nearest_per_device(batch_size, per_device, gpus * nodes)
    assert (f"PER_DEVICE_BATCH_SIZE={other}." in advice) == (other is not None)


def test_a_refusal_is_one_sentence_with_the_numbers():
    with pytest.raises(UserError) as refused:
        divide_batch("10", "4", "1", "1")
    assert str(refused.value) == (
        "BATCH_SIZE=10 cannot be split: PER_DEVICE_BATCH_SIZE (4) x GPUS (1) x NNODES (1) = 4 rows per forward pass, "
        "and 10 / 4 is not whole. Use BATCH_SIZE=8 or BATCH_SIZE=12, or PER_DEVICE_BATCH_SIZE=5."
    )


@pytest.mark.parametrize("value", ["0", "-1", "two", "", "4.0", "08", "1e3", "4 4", "a[$(touch pwned)]", "٣", "4\n"])
@pytest.mark.parametrize("position", range(4))
def test_what_is_not_a_positive_number_is_refused(value, position):
    numbers = ["16", "4", "1", "1"]
    numbers[position] = value
    with pytest.raises(UserError) as refused:
        divide_batch(*numbers)
    message = f"{NAMES[position]}: expected a whole number of 1 or more, found '{value}'."
    assert str(refused.value).startswith(message)


def test_accumulation_steps_decide_the_batch_size():
    batch = divide_batch("", "2", "3", "1", "5")
    assert (batch.size, batch.steps) == (30, 5)
    assert str(batch) == "BATCH_SIZE 30 = 2 rows per device x 3 processes x 1 node x 5 accumulation steps"
    with pytest.raises(UserError, match="--gradient_accumulation_steps: expected a whole number of 1 or more"):
        divide_batch("16", "2", "3", "1", "0")


def test_auto_leaves_the_rows_of_a_device_to_the_finetune():
    batch = divide_batch("64", "auto", "4", "2")
    assert (batch.size, batch.per_device, batch.steps, batch.fits_memory) == (64, 8, 1, True)
    assert str(batch).endswith("8 rows per device x 4 processes x 2 nodes, as many at once as fit into memory")
    with pytest.raises(UserError, match=r"BATCH_SIZE=10 cannot be split over GPUS \(4\).*Use BATCH_SIZE=12\."):
        divide_batch("10", "auto", "4", "1")
    with pytest.raises(UserError, match="is auto, and --gradient_accumulation_steps 2 divides a step already"):
        divide_batch("16", "auto", "1", "1", "2")
