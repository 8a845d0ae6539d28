"""Whole finetunes that save work train like plain ones: shared images, packing, kept features, recomputing."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import REPOSITORY, make_image
from tests.end_to_end.launching import losses, run_launcher

NUM_ROWS = 16
# All rows in every step: then a step's rows are the same however they are grouped.
EXACT = [
    "--lora_dropout", "0.0", "--seed", "3", "--save_strategy", "no", "--learning_rate", "1e-3",
    "--max_steps", "4", "--use_llm_lora", "8",
]  # fmt: skip
SHARED = ["--share_image_prefix", "True"]


@pytest.fixture(scope="module")
def captions_meta(tmp_path_factory):
    """An episode of five steps, each with the frames so far; two images with five captions each; and a text.

    The last caption of an image is a conversation that goes on from the first one.
    """
    folder = tmp_path_factory.mktemp("captions")
    rows = []
    frames = [f"frame{number}.png" for number in range(5)]
    for number, name in enumerate(frames):
        make_image(60, 60, 10 + number).save(folder / name)
        turns = [
            {"from": "human", "value": "<image>\n" * (number + 1) + "Describe it."},
            {"from": "gpt", "value": f"Pattern {number} has waves."},
        ]
        rows.append({"image": frames[: number + 1], "conversations": turns})
    for number, size in ((1, (130, 60)), (2, (90, 130))):
        make_image(*size, number).save(folder / f"{number}.png")
        for caption in range(5):
            turns = [
                {"from": "human", "value": "<image>\nDescribe it."},
                {"from": "gpt", "value": f"Pattern {number} has {'many ' * (caption % 4)}waves."},
            ]
            more = [{"from": "human", "value": "And plus one?"}, {"from": "gpt", "value": "has 3."}]
            rows.append({"image": f"{number}.png", "conversations": turns + more * (caption == 4)})
    turns = [{"from": "human", "value": "What is 3 plus one?"}, {"from": "gpt", "value": "has 4"}]
    rows.append({"conversations": turns})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    meta = {"captions": {"root": str(folder), "annotation": str(folder / "rows.jsonl")}}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder / "meta.json"


@pytest.fixture
def train(finetune, captions_meta):
    def run(name, *flags, **settings):
        settings = {
            "META_PATH": str(captions_meta),
            "BATCH_SIZE": str(NUM_ROWS),
            "PER_DEVICE_BATCH_SIZE": "4",
            **settings,
        }
        folder, process = finetune(name, *EXACT, *flags, **settings)
        assert process.returncode == 0, process.stderr
        return folder, process.stderr

    return run


def test_shared_packed_and_zero_trainings_equal_a_plain_one(train):
    plain, _ = train("plain", "--grad_checkpoint", "True")
    two = {"GPUS": "2", "PER_DEVICE_BATCH_SIZE": "4"}
    zero = {**two, "DEEPSPEED": str(REPOSITORY / "shell" / "deepspeed" / "zero_stage1_config.json")}
    ways = {
        "shared": train("shared", *SHARED),
        "shared, packed, two processes": train("both", *SHARED, "--packing", "True", **two),
        "packed": train("packed", "--packing", "True", "--grad_checkpoint", "False"),
        "shared, ZeRO-1": train("zero", *SHARED, **zero),
    }
    expected, weights = torch.tensor(losses(plain)), load_file(plain / "adapter_model.safetensors")
    for name, (folder, _) in ways.items():
        tolerance = 1e-4 if "ZeRO" in name else 1e-5
        assert torch.allclose(torch.tensor(losses(folder)), expected, atol=tolerance, rtol=0), name
        trained = load_file(folder / "adapter_model.safetensors")
        assert all(torch.allclose(trained[key], weights[key], atol=1e-3) for key in weights), name
    said = ways["shared"][1]
    assert "16 rows in 4 groups" in said
    planned, there = map(float, re.search(r"Memory plan: ([\d.]+) of ([\d.]+) GiB", said).groups())
    peak = float(re.search(r"Peak memory of this process: ([\d.]+) GiB", said).group(1))
    assert peak < 2 * planned and planned < there
    assert "0 of 2 layers recompute" in said
    assert "waiting for data" in said


def test_an_epoch_has_as_many_steps_with_shared_images(train):
    counts = []
    for flags in ([], SHARED):
        folder, _ = train(
            "epoch" + "".join(flags), *flags, "--max_steps", "-1", BATCH_SIZE="8", PER_DEVICE_BATCH_SIZE="2"
        )
        counts.append(len(losses(folder)))
    assert counts == [2, 2]


def test_a_shared_training_that_was_cut_off_continues_exactly(train):
    flags = [*SHARED, "--packing", "True", "--lora_dropout", "0.1", "--max_steps", "6"]
    split = {"BATCH_SIZE": "8", "PER_DEVICE_BATCH_SIZE": "4"}
    whole, _ = train("whole", *flags, **split)
    saving = [*flags, "--save_strategy", "steps", "--save_steps", "3"]
    folder, _ = train("cut", *saving, "--save_total_limit", "2", **split)
    shutil.rmtree(folder / "checkpoint-6")
    (folder / "trainer_state.json").unlink()
    folder, said = train("cut", *saving, "--save_total_limit", "2", **split)
    assert "Continuing from" in said
    assert losses(folder) == losses(whole)


@pytest.mark.slow
def test_kept_features_serve_later_epochs_and_evaluations(train, captions_meta, tmp_path):
    cache = tmp_path / "features"
    flags = [*SHARED, "--vision_cache", str(cache), "--max_steps", "-1", "--num_train_epochs", "2"]
    first, _ = train("first", *flags)
    kept = [file for file in cache.rglob("*") if len(file.name) == 64]
    assert len(kept) == 7  # a frame has one name, however many others its row has
    stamps = {file: file.stat().st_mtime_ns for file in kept}
    second, _ = train("second", *flags)
    assert losses(first) == losses(second)
    folder = captions_meta.parent
    process = run_launcher(
        "evaluate.sh", str(first), "caption-custom", "--annotation", str(folder / "rows.jsonl"),
        "--root", str(folder), "--dynamic", "--vision-cache", str(cache), "--out-dir", str(tmp_path / "result"),
        "--max-new-tokens", "4",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*") if len(file.name) == 64} == stamps
