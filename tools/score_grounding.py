"""Score captions of habitat views by their (colour, kind, side) statements.

    python tools/score_grounding.py predictions.json data/habitat/scenes.json --split val

The predictions are in the COCO results format: a list of {"image_id": int, "caption": str}.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from habitat.grounding import grounding_f1, swapped_f1

from internvl.cli import Parser
from internvl.errors import UserError, ends_on_user_error, shorten
from internvl.json_files import read_json, read_object, write_json


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command-line options."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("predictions", type=Path, help="captions in the COCO results format")
    parser.add_argument("scenes", type=Path, help="scenes.json of the data set")
    parser.add_argument("--split", default="val", help="split of the data set the captions belong to")
    parser.add_argument("--seed", type=int, default=0, help="which images the captions are swapped between")
    parser.add_argument("--json", type=Path, help="also write the scores to this file")
    return parser.parse_args(argv)


def read_captions(file: Path) -> dict[int, str]:
    """Return image id → caption of a file in the COCO results format.

    Raises:
        UserError: it is of another form.
    """
    entries = read_json(file)
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries], 1):
        fields = entry if isinstance(entry, dict) else {}
        if not is_id(fields.get("image_id")) or not isinstance(fields.get("caption"), str):
            raise UserError(f"{file}:entry {number}: is {shorten(entry)}. Give image_id, a whole number, and caption.")
    return {int(entry["image_id"]): entry["caption"] for entry in entries}


def read_scenes(file: Path, split: str) -> dict[int, list[dict]]:
    """Return image id → the pieces of furniture in view.

    Raises:
        UserError: the file is not the scenes.json of the data set, or lacks the split.
    """
    scenes = read_object(file).get(split)
    if not isinstance(scenes, dict) or not all(map(is_id, scenes)) or not all(map(is_scene, scenes.values())):
        raise UserError(
            f"{file}:{split}: is not an object of image id → pieces in view. Name the data set's scenes.json."
        )
    return {int(image_id): pieces for image_id, pieces in scenes.items()}


def is_id(value: object) -> bool:
    return type(value) is int or (isinstance(value, str) and value.isdecimal() and len(value) < 19)


def is_scene(pieces: object) -> bool:
    """Whether this is a list of pieces with the words that a caption may use of them."""
    words = ("colour", "kind", "side")
    return isinstance(pieces, list) and all(
        isinstance(piece, dict) and "mentioned" in piece and all(isinstance(piece.get(word), str) for word in words)
        for piece in pieces
    )


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Score the captions against their own images and, as a floor, against swapped ones."""
    args = parse_args(argv)
    captions, scenes = read_captions(args.predictions), read_scenes(args.scenes, args.split)
    unknown = next((image_id for image_id in captions if image_id not in scenes), None)
    if unknown is not None or len(captions) < 2:
        what = f"has image {unknown}, which {args.scenes} lacks" if captions else "holds fewer than two captions"
        raise UserError(f"{args.predictions}: {what}. Name the predictions of the split {args.split!r}.")
    scores = {
        "images": len(captions),
        "grounding": grounding_f1(captions, scenes),
        "swapped": swapped_f1(captions, scenes, args.seed),
    }
    for name in ("grounding", "swapped"):
        line = "  ".join(f"{key} {value:.3f}" for key, value in scores[name].items())
        print(f"{name:>9}: {line}")
    if args.json:
        write_json(args.json, scores)


if __name__ == "__main__":
    main()
