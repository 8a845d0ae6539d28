"""The files of the data set: format, seeds and byte-for-byte repeatability."""

import json

import pytest
import render_habitat
from habitat.captions import CAPTION_PROMPT
from habitat.dataset import SEED_OFFSETS, SEEDS_PER_RUN, SEEDS_PER_USE, jobs, scene_seed
from habitat.grounding import grounding_f1
from PIL import Image

NUM_TRAIN, NUM_VAL, SIZE = 4, 3, 96


def write(out, style, workers):
    counts = ["--num-train", str(NUM_TRAIN), "--num-val", str(NUM_VAL)]
    options = ["--style", style, "--size", str(SIZE), "--workers", str(workers)]
    render_habitat.main(["--out", str(out), *counts, *options])
    return out


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def habitat(tmp_path_factory):
    return write(tmp_path_factory.mktemp("habitat"), "habitat", workers=1)


@pytest.fixture(scope="module")
def pretrain(tmp_path_factory):
    return write(tmp_path_factory.mktemp("pretrain"), "pretrain", workers=1)


def test_the_same_bytes_whatever_the_number_of_workers(habitat, tmp_path):
    again = write(tmp_path, "habitat", workers=2)
    files = sorted(path.relative_to(habitat) for path in habitat.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((habitat / name).read_bytes() == (again / name).read_bytes() for name in files)


@pytest.mark.parametrize(("split", "count"), [("train", NUM_TRAIN), ("val", NUM_VAL)])
def test_habitat_rows(habitat, split, count):
    rows = read_rows(habitat / f"{split}.jsonl")
    assert [row["id"] for row in rows] == list(range(5 * count))
    for index, row in enumerate(rows):
        assert row["image"] == f"images/{split}/habitat_{split}_{index // 5 + 1:012d}.jpg"
        human, gpt = row["conversations"]
        assert human == {"from": "human", "value": f"<image>\n{CAPTION_PROMPT}"}
        assert gpt["from"] == "gpt"
        with Image.open(habitat / row["image"]) as image:
            assert image.size == (row["width"], row["height"]) == (SIZE, SIZE)
            assert image.format == "JPEG"


def test_validation_files_agree(habitat):
    images = json.loads((habitat / "val.json").read_text())
    truth = json.loads((habitat / "val_gt.json").read_text())
    scenes = json.loads((habitat / "scenes.json").read_text())
    assert set(truth) == {"info", "licenses", "images", "annotations"}
    ids = [image["id"] for image in truth["images"]]
    assert [int(image["image"].rsplit("_", 1)[1][:-4]) for image in images] == ids == list(range(1, NUM_VAL + 1))
    assert [image["image"].rsplit("/", 1)[1] for image in images] == [i["file_name"] for i in truth["images"]]
    assert {key: list(split) for key, split in scenes.items()} == {
        "train": [str(i) for i in range(1, NUM_TRAIN + 1)],
        "val": [str(i) for i in ids],
    }
    rows = [row["conversations"][1]["value"] for row in read_rows(habitat / "val.jsonl")]
    assert rows == [annotation["caption"] for annotation in truth["annotations"]]
    captions = {annotation["image_id"]: annotation["caption"] for annotation in truth["annotations"]}
    pieces = {int(image_id): found for image_id, found in scenes["val"].items()}
    assert grounding_f1(captions, pieces)["f1"] == 1.0
    assert set(pieces[1][0]) == {"kind", "colour", "side", "visible_share", "mentioned"}
    assert pieces[1][0]["mentioned"]


def test_pretraining_rows(pretrain):
    assert {path.name for path in pretrain.iterdir()} == {"images", "train.jsonl", "scenes.json"}
    rows = read_rows(pretrain / "train.jsonl")
    assert len(rows) == NUM_TRAIN
    for row in rows:
        speakers = [message["from"] for message in row["conversations"]]
        assert speakers == ["human", "gpt"] * 4
        values = [message["value"] for message in row["conversations"]]
        assert [value.startswith("<image>\n") for value in values] == [True] + [False] * 7


def test_the_three_uses_never_share_a_scene():
    uses = [{job.scene_seed for job in jobs("train", 500, use, 0)} for use in SEED_OFFSETS]
    assert len(set.union(*uses)) == 500 * len(uses)
    for use in SEED_OFFSETS:
        starts = sorted(SEED_OFFSETS.values()) + [SEEDS_PER_RUN]
        last = scene_seed(use, SEEDS_PER_USE - 1, 0)
        assert last < min(start for start in starts if start > SEED_OFFSETS[use])
        assert scene_seed(use, 0, 1) > max(SEED_OFFSETS.values()) + SEEDS_PER_USE
        with pytest.raises(ValueError, match="outside"):
            scene_seed(use, SEEDS_PER_USE, 0)
