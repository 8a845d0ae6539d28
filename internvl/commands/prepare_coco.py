"""Make the COCO caption training and test files from what COCO and Karpathy publish.

    python tools/prepare_coco.py --karpathy dataset_coco.json            # the split published scores are made on
    python tools/prepare_coco.py --train captions_train2014.json --test captions_val2014.json
    python tools/check_data.py shell/data/coco_caption.json              # are all images there?

Writes to data/coco/annotations/ what the COCO launcher and ``evaluate.sh MODEL caption-coco`` read:
coco_karpathy_train_567k.jsonl, a row per caption; coco_karpathy_test.json and coco_karpathy_test_gt.json, the images
to caption and their references. Images are expected in data/coco/train2014 and data/coco/val2014.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from internvl.cli import Parser
from internvl.data.conversion import CAPTION_PROMPT, ask, one_line, write_lines
from internvl.data.json_stream import BrokenJsonError, stream_json
from internvl.errors import UserError, ends_on_user_error
from internvl.json_files import write_json
from internvl.progress import Progress
from internvl.repository import REPOSITORY

TRAIN, TEST, TRUTH = "coco_karpathy_train_567k.jsonl", "coco_karpathy_test.json", "coco_karpathy_test_gt.json"
# Images in dataset_coco.json, and what its split has: the counts of the original's own files.
FULL_IMAGES, FULL_TRAIN_ROWS, FULL_TEST_IMAGES, FULL_TEST_CAPTIONS = 123_287, 566_747, 5_000, 25_010
SHOWN = 3  # names of missing images; all are counted
TRAIN_SPLITS = {"train", "restval"}


class Captioned(NamedTuple):
    """An image: its COCO id, path below the root, and captions."""

    image_id: int
    path: str
    captions: list[str]
    is_train: bool
    is_test: bool


def _read_karpathy(file: Path) -> Iterator[Captioned]:
    """Yield the images of dataset_coco.json."""
    for number, image in enumerate(_stream_items(file, "images.item"), 1):
        try:
            captioned = Captioned(
                image["cocoid"],
                f"{image['filepath']}/{image['filename']}",
                [one_line(sentence["raw"]) for sentence in image["sentences"]],
                image["split"] in TRAIN_SPLITS,
                image["split"] == "test",
            )
        except (KeyError, TypeError, AttributeError) as err:
            raise UserError(
                f"{file}:images item {number}: is not of dataset_coco.json ({err!r}). Name that file of Karpathy's; "
                "captions JSONs of COCO go to --train and --test."
            ) from err
        yield captioned


def _read_official(file: Path, *, is_train: bool) -> Iterator[Captioned]:
    """Yield the images of a captions JSON of COCO, 2014 or 2017."""
    captions: dict[int, list[str]] = {}
    try:
        paths = {image["id"]: image_path(image["file_name"], file) for image in _stream_items(file, "images.item")}
        for note in _stream_items(file, "annotations.item"):
            captions.setdefault(note["image_id"], []).append(one_line(note["caption"]))
    except (KeyError, TypeError, AttributeError) as err:
        raise UserError(
            f"{file}: is no captions JSON of COCO ({err!r}). Name captions_train2014.json or one like it; "
            "dataset_coco.json goes to --karpathy."
        ) from err
    for image_id, texts in captions.items():
        if image_id not in paths:
            raise UserError(f"{file}: a caption is of image {image_id}, which is not among the images. Copy it again.")
        yield Captioned(image_id, paths[image_id], texts, is_train, not is_train)


def _stream_items(file: Path, prefix: str) -> Iterator[dict]:
    """Yield the objects of a list in a JSON file, one at a time."""
    if not file.is_file():
        raise UserError(f"{file}: there is no such file. Download it from cocodataset.org, or correct the path.")
    found = False
    try:
        with open(file, "rb") as stream:
            for item in Progress(
                stream_json(stream, prefix), desc=f"{file.name}, {prefix[:-5]}", leave=False, delay=2
            ):
                found = True
                yield item
    except BrokenJsonError as err:
        raise UserError(f"{file}: {err}. Download it again.") from err
    if not found:
        raise UserError(f"{file}: has no {prefix[:-5]}. Name dataset_coco.json, or a captions JSON of COCO.")


def image_path(file_name: str, file: Path) -> str:
    """Return an image's path below the root: folders are called as COCO's archives are."""
    if "/" in file_name:
        return file_name
    folder = re.search(r"(train|val)20\d\d", file_name) or re.search(r"(train|val)20\d\d", file.name)
    if folder is None:
        raise UserError(
            f"{file}: {file_name} does not say its folder. Call the file as COCO does (captions_train2014.json)."
        )
    return f"{folder[0]}/{file_name}"


def prepare(images: list[Captioned], out: Path) -> int:
    """Write the three files; returns the number of train rows. Empty captions, which teach nothing, give none."""
    rows = (
        ask(image.path, CAPTION_PROMPT, caption)
        for image in images
        if image.is_train
        for caption in image.captions
        if caption
    )
    num_rows = write_lines(out / TRAIN, ({"id": number, **row} for number, row in enumerate(rows)))
    test = [image for image in images if image.is_test]
    captions = [(image.image_id, caption) for image in test for caption in image.captions]
    write_json(out / TEST, [{"image": image.path, "caption": image.captions} for image in test])
    write_json(
        out / TRUTH,
        {
            "images": [{"id": image.image_id, "file_name": image.path} for image in test],
            "annotations": [
                {"id": number, "image_id": image_id, "caption": caption}
                for number, (image_id, caption) in enumerate(captions)
            ],
        },
    )
    return num_rows


def count(images: list[Captioned]) -> tuple[int, int, int]:
    """Return the numbers of train captions, test images and test captions."""
    return (
        sum(len(image.captions) for image in images if image.is_train),
        sum(image.is_test for image in images),
        sum(len(image.captions) for image in images if image.is_test),
    )


def _check_counts(file: Path | None, images: list[Captioned]) -> str:
    """Return a line on whether this is the full Karpathy split; ``file`` is its JSON, None for the official ones.

    Raises:
        UserError: it has all images, and other numbers of captions than it must have.
    """
    found = "{:,} train captions, {:,} test images and {:,} test captions".format(*count(images))
    if file is None:
        return (
            f"This is not Karpathy's split, whose names the files have: {len(images):,} images, {found}. Scores "
            "on it are not those that are published."
        )
    if len(images) != FULL_IMAGES:
        return f"This is not the full Karpathy set: {len(images):,} of {FULL_IMAGES:,} images, {found}."
    if count(images) != (FULL_TRAIN_ROWS, FULL_TEST_IMAGES, FULL_TEST_CAPTIONS):
        raise UserError(
            f"{file}: has {found} instead of {FULL_TRAIN_ROWS:,}, {FULL_TEST_IMAGES:,} and {FULL_TEST_CAPTIONS:,}. "
            "Download it again."
        )
    return "This is the full Karpathy set."


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--karpathy", type=Path, metavar="JSON", help="dataset_coco.json of Karpathy's split")
    parser.add_argument("--train", type=Path, metavar="JSON", help="captions JSON of COCO to train on")
    parser.add_argument("--test", type=Path, metavar="JSON", help="captions JSON of COCO to test on")
    parser.add_argument("--root", type=Path, default=REPOSITORY / "data" / "coco", help="default: data/coco")
    parser.add_argument("--overwrite", action="store_true", help="replace the files if they are there")
    args = parser.parse_args(argv)
    if bool(args.karpathy) == bool(args.train or args.test):
        raise UserError("command line: give either --karpathy, or --train and --test.")
    if args.karpathy:
        images = list(_read_karpathy(args.karpathy))
    elif args.train and args.test:
        images = [*_read_official(args.train, is_train=True), *_read_official(args.test, is_train=False)]
    else:
        raise UserError("command line: --train and --test belong together. Give both.")
    out = args.root / "annotations"
    there = next((out / name for name in (TRAIN, TEST, TRUTH) if (out / name).exists()), None)
    if there and not args.overwrite:
        raise UserError(f"{there}: is there already. Name another --root, or pass --overwrite.")
    remark = _check_counts(args.karpathy, images)
    num_rows = prepare(images, out)
    num_train, num_test, num_captions = count(images)
    print(f"Wrote {num_rows:,} train rows, {num_test:,} test images and {num_captions:,} references to {out}.")
    if num_rows != num_train:
        print(f"Left out of the train rows: {num_train - num_rows:,} empty captions.")
    print(remark)
    missing = [image.path for image in images if not (args.root / image.path).is_file()]
    if missing:
        first = ", ".join(missing[:SHOWN])
        print(f"{len(missing):,} of {len(images):,} images are not in {args.root} yet, first {first}.")
    if args.root == REPOSITORY / "data" / "coco":
        print("shell/data/coco_caption.json and evaluate.sh caption-coco read these files.")
