"""shell/lib/batch.sh against plain Python."""

import itertools
import subprocess

import pytest

CASES = list(itertools.product([1, 2, 6, 10, 16, 512], [1, 3, 4, 5, 40], [1, 2, 8], [1, 2]))


def batch(repo, script):
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail; source shell/lib/common.sh; source shell/lib/batch.sh; {script}"],
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=60,
    )


def nearest_per_device(batch_size, per_device, processes):
    """The nearest PER_DEVICE_BATCH_SIZE that divides; the smaller one of two."""
    candidates = [n for n in range(1, batch_size + 1) if batch_size % (n * processes) == 0]
    return min(candidates, key=lambda n: (abs(n - min(per_device, batch_size // processes)), n), default=None)


def test_division_table(repo):
    calls = "\n".join(f"(gradient_accumulation {b} {p} {g} {n}) 2>&1 || true" for b, p, g, n in CASES)
    lines = batch(repo, calls).stdout.splitlines()
    assert len(lines) == len(CASES)
    for (batch_size, per_device, gpus, nnodes), line in zip(CASES, lines, strict=True):
        rows = per_device * gpus * nnodes
        if batch_size % rows == 0:
            assert line == str(batch_size // rows)
            continue
        assert f"{batch_size} / {rows} is not whole" in line
        advice = line.rpartition("Use ")[2]
        around = [n for n in (batch_size // rows * rows, batch_size // rows * rows + rows) if n]
        assert [f"BATCH_SIZE={n}" for n in around] == [
            word.strip(",.") for word in advice.split() if word.startswith("BATCH_SIZE=")
        ]
        other = nearest_per_device(batch_size, per_device, gpus * nnodes)
        assert (f"PER_DEVICE_BATCH_SIZE={other}." in advice) == (other is not None)


def test_refusal_is_one_sentence_with_the_numbers(repo):
    done = batch(repo, "gradient_accumulation 10 4 1 1")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "BATCH_SIZE=10 cannot be split: PER_DEVICE_BATCH_SIZE (4) x GPUS (1) x NNODES (1) = 4 rows per "
        "forward pass, and 10 / 4 is not whole. "
        "Use BATCH_SIZE=8 or BATCH_SIZE=12, or PER_DEVICE_BATCH_SIZE=5.\n"
    )


@pytest.mark.parametrize("value", ["0", "-1", "two", "", "4.0", "08", "1e3", "4 4", "a[$(touch pwned)]"])
@pytest.mark.parametrize("position", range(4))
def test_not_a_positive_number(repo, value, position):
    numbers = ["16", "4", "1", "1"]
    numbers[position] = value
    done = batch(repo, "gradient_accumulation " + " ".join(f"'{number}'" for number in numbers))
    name = ["BATCH_SIZE", "PER_DEVICE_BATCH_SIZE", "GPUS", "NNODES"][position]
    assert done.returncode == 2
    assert done.stderr.startswith(f"{name}: expected a whole number of 1 or more, found '{value}'.")
    assert done.stderr.count("\n") == 1
    assert not (repo / "pwned").exists()
