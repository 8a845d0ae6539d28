"""Make the COCO caption training and test files from what COCO and Karpathy publish.

    python tools/prepare_coco.py --karpathy dataset_coco.json            # the split published scores are made on
    python tools/prepare_coco.py --train captions_train2014.json --test captions_val2014.json
    python tools/check_data.py shell/data/coco_caption.json              # are all pictures there?

Writes to data/coco/annotations/ what the COCO launcher and ``evaluate.sh MODEL caption-coco`` read:
coco_karpathy_train_567k.jsonl, a row per caption; coco_karpathy_test.json and coco_karpathy_test_gt.json, the pictures
to caption and their references. Pictures are expected in data/coco/train2014 and data/coco/val2014.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ijson
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from internvl.data.conversion import CAPTION_PROMPT, ask, write_lines
from internvl.errors import UserError, ends_on_user_error
from internvl.json_files import write_json

REPOSITORY = Path(__file__).resolve().parents[1]
TRAIN, TEST, TRUTH = "coco_karpathy_train_567k.jsonl", "coco_karpathy_test.json", "coco_karpathy_test_gt.json"
# Pictures in dataset_coco.json, and what its split has: the counts of the original's own files.
FULL_PICTURES, FULL_TRAIN_ROWS, FULL_TEST_PICTURES = 123_287, 566_747, 5_000
TRAIN_SPLITS = {"train", "restval"}


class Captioned(NamedTuple):
    """A picture: its COCO id, path below the root, and captions."""

    image_id: int
    path: str
    captions: list[str]
    is_train: bool
    is_test: bool


def read_karpathy(file: Path) -> Iterator[Captioned]:
    """Yield the pictures of dataset_coco.json."""
    for image in stream_items(file, "images.item"):
        yield Captioned(
            image["cocoid"],
            f"{image['filepath']}/{image['filename']}",
            [sentence["raw"] for sentence in image["sentences"]],
            image["split"] in TRAIN_SPLITS,
            image["split"] == "test",
        )


def read_official(file: Path, *, is_train: bool) -> Iterator[Captioned]:
    """Yield the pictures of a captions JSON of COCO, 2014 or 2017."""
    paths = {image["id"]: picture_path(image["file_name"], file) for image in stream_items(file, "images.item")}
    captions: dict[int, list[str]] = {}
    for note in stream_items(file, "annotations.item"):
        captions.setdefault(note["image_id"], []).append(note["caption"])
    for image_id, texts in captions.items():
        if image_id not in paths:
            raise UserError(
                f"{file}: a caption is of picture {image_id}, which is not among the images. Copy it again."
            )
        yield Captioned(image_id, paths[image_id], texts, is_train, not is_train)


def stream_items(file: Path, prefix: str) -> Iterator[dict]:
    """Yield the objects of a list in a JSON file, one at a time."""
    if not file.is_file():
        raise UserError(f"{file}: there is no such file. Download it from cocodataset.org, or correct the path.")
    found = False
    try:
        with open(file, "rb") as stream:
            for item in tqdm(ijson.items(stream, prefix), desc=f"{file.name}, {prefix[:-5]}", leave=False, delay=2):
                found = True
                yield item
    except ijson.JSONError as err:
        raise UserError(f"{file}: is not valid JSON ({err}). Download it again.") from err
    if not found:
        raise UserError(f"{file}: has no {prefix[:-5]}. Name dataset_coco.json, or a captions JSON of COCO.")


def picture_path(file_name: str, file: Path) -> str:
    """Return a picture's path below the root: folders are called as COCO's archives are."""
    if "/" in file_name:
        return file_name
    folder = re.search(r"(train|val)20\d\d", file_name) or re.search(r"(train|val)20\d\d", file.name)
    if folder is None:
        raise UserError(
            f"{file}: {file_name} does not say its folder. Call the file as COCO does (captions_train2014.json)."
        )
    return f"{folder[0]}/{file_name}"


def prepare(pictures: list[Captioned], out: Path) -> tuple[int, int, int]:
    """Write the three files; returns the numbers of train rows, test pictures and test captions."""
    rows = (
        ask(picture.path, CAPTION_PROMPT, caption)
        for picture in pictures
        if picture.is_train
        for caption in picture.captions
    )
    num_rows = write_lines(out / TRAIN, ({"id": number, **row} for number, row in enumerate(rows)))
    test = [picture for picture in pictures if picture.is_test]
    captions = [(picture.image_id, caption) for picture in test for caption in picture.captions]
    write_json(out / TEST, [{"image": picture.path, "caption": picture.captions} for picture in test])
    write_json(
        out / TRUTH,
        {
            "images": [{"id": picture.image_id, "file_name": picture.path} for picture in test],
            "annotations": [
                {"id": number, "image_id": image_id, "caption": caption}
                for number, (image_id, caption) in enumerate(captions)
            ],
        },
    )
    return num_rows, len(test), len(captions)


def check_counts(file: Path, num_pictures: int, num_rows: int, num_test: int) -> str:
    """Return a line on whether this is the full Karpathy split.

    Raises:
        UserError: it has all pictures, and other numbers of rows than it must have.
    """
    if num_pictures != FULL_PICTURES:
        return f"This is not the full Karpathy set: {num_pictures:,} of {FULL_PICTURES:,} pictures."
    if (num_rows, num_test) != (FULL_TRAIN_ROWS, FULL_TEST_PICTURES):
        raise UserError(
            f"{file}: gives {num_rows:,} train rows and {num_test:,} test pictures instead of {FULL_TRAIN_ROWS:,} and "
            f"{FULL_TEST_PICTURES:,}. Download it again."
        )
    return "This is the full Karpathy set."


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--karpathy", type=Path, metavar="JSON", help="dataset_coco.json of Karpathy's split")
    parser.add_argument("--train", type=Path, metavar="JSON", help="captions JSON of COCO to train on")
    parser.add_argument("--test", type=Path, metavar="JSON", help="captions JSON of COCO to test on")
    parser.add_argument("--root", type=Path, default=REPOSITORY / "data" / "coco", help="default: data/coco")
    args = parser.parse_args(argv)
    if bool(args.karpathy) == bool(args.train or args.test):
        raise UserError("command line: give either --karpathy, or --train and --test.")
    if args.karpathy:
        pictures = list(read_karpathy(args.karpathy))
    elif args.train and args.test:
        pictures = [*read_official(args.train, is_train=True), *read_official(args.test, is_train=False)]
    else:
        raise UserError("command line: --train and --test belong together. Give both.")
    out = args.root / "annotations"
    num_rows, num_test, num_captions = prepare(pictures, out)
    print(f"Wrote {num_rows:,} train rows, {num_test:,} test pictures and {num_captions:,} references to {out}.")
    if args.karpathy:
        print(check_counts(args.karpathy, len(pictures), num_rows, num_test))
    missing = [picture.path for picture in pictures if not (args.root / picture.path).is_file()]
    if missing:
        print(f"{len(missing):,} of {len(pictures):,} pictures are not in {args.root} yet, first {missing[0]}.")
    if args.root == REPOSITORY / "data" / "coco":
        print("shell/data/coco_caption.json and evaluate.sh caption-coco read these files.")


if __name__ == "__main__":
    main()
