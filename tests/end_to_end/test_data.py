"""Data in whole finetunes: all four kinds of row, the check before the first step, and rows that fail during it."""

import json

import pytest

from tests.conftest import make_image
from tests.end_to_end.launching import losses

ONE_PROCESS = ["--lora_dropout", "0.0", "--save_strategy", "no", "--learning_rate", "5e-3"]


def row(question: str, answer: str, **fields) -> dict:
    return {**fields, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


@pytest.fixture
def mixed(tmp_path):
    """Eight rows of each kind: text, an image, two images, a folder of frames; and their meta file."""
    rows = []
    for number in range(8):
        make_image(120, 60, number).save(tmp_path / f"{number}.png")
        frames = tmp_path / f"frames_{number}"
        frames.mkdir()
        for frame in range(3):
            make_image(60, 60, number + frame).save(frames / f"{frame}.png")
        colours = f"{number} colours and many waves"
        rows += [
            row(f"How many colours has {number}?", colours),
            row("<image>\nDescribe it.", colours, image=f"{number}.png"),
            row("<image> and <image>", colours, image=[f"{number}.png", f"{(number + 1) % 8}.png"]),
            row("<video>\nDescribe it.", colours, video=f"frames_{number}"),
        ]
    file = tmp_path / "mixed.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    (tmp_path / "meta.json").write_text(json.dumps({"mixed": {"root": str(tmp_path), "annotation": str(file)}}))
    return tmp_path


def test_all_four_kinds_in_one_file_train_and_the_loss_falls(finetune, mixed, monkeypatch):
    monkeypatch.setenv("INTERNVL_CACHE", str(mixed / "cache"))
    flags = ["--max_num_frame", "4", "--min_num_frame", "2", "--num_train_epochs", "4"]
    for gpus in ("1", "2"):
        folder, process = finetune(f"with_{gpus}", *ONE_PROCESS, *flags, META_PATH=str(mixed / "meta.json"), GPUS=gpus)
        assert process.returncode == 0, process.stderr
        curve = losses(folder)
        assert len(curve) == 16 and sum(curve[-3:]) < 0.93 * sum(curve[:3])
    assert len(list((mixed / "cache" / "checks").iterdir())) == 1  # the second run, of two processes, used it
    report = json.loads((folder / "data_report.json").read_text())
    assert report["rows"] == 32 and report["skipped"] == report["left_out"] == []


def test_bad_rows_end_the_run_before_the_first_step(finetune, mixed):
    with open(mixed / "mixed.jsonl", "a") as file:
        file.write("{broken\n" + json.dumps(row("<image>", "Nothing.", image="none.png")) + "\n")
    _, process = finetune("bad", *ONE_PROCESS, META_PATH=str(mixed / "meta.json"))
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert "mixed.jsonl:33: is not valid JSON" in process.stderr
    assert "mixed.jsonl:34: " in process.stderr and "none.png: there is no such image" in process.stderr
    assert "2 of 34 rows cannot be trained on" in process.stderr and "tools/check_data.py" in process.stderr


def damage(mixed, count: int) -> None:
    """Cut images off behind their header, where only reading them completely shows it."""
    for number in range(count):
        file = mixed / f"{number}.png"
        make_image(600, 300, number).save(file)
        file.write_bytes(file.read_bytes()[:2000])


def test_a_row_that_cannot_be_read_during_training_is_skipped_counted_and_listed(finetune, mixed):
    damage(mixed, 1)
    folder, process = finetune(
        "skip", *ONE_PROCESS, "--max_bad_fraction", "0.2", "--num_train_epochs", "1",
        META_PATH=str(mixed / "meta.json"),
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    skipped = json.loads((folder / "data_report.json").read_text())["skipped"]
    assert sorted(int(bad["where"].rsplit(":", 1)[1]) for bad in skipped) == [2, 3, 31]  # the rows that show 0.png
    assert "3 rows were skipped" in (folder / "training_log.txt").read_text()


def test_a_row_that_cannot_be_read_during_training_ends_it_when_asked(finetune, mixed, monkeypatch):
    monkeypatch.setenv("INTERNVL_CACHE", str(mixed / "cache"))
    damage(mixed, 1)
    flags = ["--on_bad_sample", "error", "--dataloader_num_workers", "1"]
    _, process = finetune("end", *ONE_PROCESS, *flags, META_PATH=str(mixed / "meta.json"))
    assert process.returncode == 2 and "Traceback" not in process.stderr, process.stderr[-3000:]
    assert "0.png: cannot be read as an image" in process.stderr


def test_too_many_unreadable_rows_stop_the_run(finetune, mixed):
    damage(mixed, 8)
    _, process = finetune("stop", *ONE_PROCESS, META_PATH=str(mixed / "meta.json"))
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert "--max_bad_fraction" in process.stderr and "cannot be read as an image" in process.stderr


def test_rows_too_long_are_left_out_and_listed(finetune, mixed):
    with open(mixed / "mixed.jsonl", "a") as file:
        file.write(json.dumps(row("Tell me.", "more and more " * 500)) + "\n")
    folder, process = finetune(
        "long", *ONE_PROCESS, "--max_seq_length", "700", "--on_long_sample", "skip", "--max_steps", "2",
        META_PATH=str(mixed / "meta.json"),
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    report = json.loads((folder / "data_report.json").read_text())
    assert report["rows"] == 32 and len(report["left_out"]) == 1 and "mixed.jsonl:33" in report["left_out"][0]
