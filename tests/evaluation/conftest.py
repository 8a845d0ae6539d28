"""Golden caption sets and real captions that the evaluation's tests share."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def golden_set20(repository) -> dict:
    """Captions with the scores that the original evaluation gave them; kept in the repository."""
    return json.loads((repository / "tests/reference/data/caption/set20.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def coco_mini(shared) -> Path:
    """79 images of COCO val2017 with five captions each."""
    return shared / "coco_mini"


@pytest.fixture(scope="session")
def human_captions(coco_mini) -> tuple[list[dict], dict]:
    """The first caption of each of the 79 images as prediction, the others as ground truth."""
    captions = json.loads((coco_mini / "captions_val2017.json").read_text(encoding="utf-8"))
    images = captions["images"]
    by_image = {image["id"]: [] for image in images}
    for annotation in captions["annotations"]:
        if annotation["image_id"] in by_image:
            by_image[annotation["image_id"]].append(annotation)
    predictions = [{"image_id": rows[0]["image_id"], "caption": rows[0]["caption"]} for rows in by_image.values()]
    annotations = [annotation for rows in by_image.values() for annotation in rows[1:]]
    return predictions, {"images": images, "annotations": annotations}
