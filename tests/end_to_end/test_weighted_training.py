"""A training on rows with weights: the whole command, on one process and on two, sharing and DeepSpeed."""

import json

import pytest

WEIGHTS = [1, 3, 2, 2, 1, 1, 4, 2]
FLAGS = ("--max_steps", "1", "--save_strategy", "no", "--lora_dropout", "0.0", "--max_grad_norm", "0")
PLAIN = ("--share_image_prefix", "False", "--packing", "False")
ZERO_1 = ("--deepspeed", "shell/deepspeed/zero_stage1_config.json")


def write(folder, root, rows) -> str:
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    meta = {"rows": {"root": str(root), "annotation": str(folder / "rows.jsonl")}}
    (folder / "meta.json").write_text(json.dumps(meta))
    return str(folder / "meta.json")


def first_step(folder) -> tuple[float, float]:
    state = json.loads((folder / "trainer_state.json").read_text())
    return next((entry["loss"], entry["grad_norm"]) for entry in state["log_history"] if "loss" in entry)


@pytest.fixture
def meta_files(rows_folder, tmp_path):
    """Weighted, repeated: the same rows with whole weights, and each as often as it weighs."""
    rows = [json.loads(line) for line in (rows_folder / "train.jsonl").read_text().splitlines()][: len(WEIGHTS)]
    weighted = [{**row, "weight": weight} for row, weight in zip(rows, WEIGHTS, strict=True)]
    repeated = [row for row, weight in zip(rows, WEIGHTS, strict=True) for _ in range(weight)]
    named = {"weighted": weighted, "repeated": repeated}
    return [write(tmp_path / name, rows_folder, rows) for name, rows in named.items()]


@pytest.mark.slow
def test_whole_weights_train_as_repeated_rows(train, meta_files, tmp_path):
    weighted, repeated = meta_files
    many = ("--meta_path", repeated, "--per_device_train_batch_size", "8")
    assert train(tmp_path / "plain", 1, flags=(*FLAGS, *PLAIN, *many)) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    expected = first_step(tmp_path / "plain")
    for name, ranks, flags in (("one", 1, PLAIN), ("two", 2, PLAIN), ("shared", 2, ()), ("zero", 2, ZERO_1)):
        done = train(tmp_path / name, ranks, flags=(*FLAGS, *flags, "--meta_path", weighted))
        assert done == 0, (tmp_path / "log.txt").read_text()[-3000:]
        assert first_step(tmp_path / name) == pytest.approx(expected, rel=1e-5), name
