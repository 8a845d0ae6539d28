"""Score captions of habitat views by their (colour, kind, side) statements.

    python tools/score_grounding.py predictions.json data/habitat/scenes.json --split val

The predictions are in the COCO results format: a list of {"image_id": int, "caption": str}.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from habitat.grounding import grounding_f1, swapped_f1


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command-line options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("predictions", type=Path, help="captions in the COCO results format")
    parser.add_argument("scenes", type=Path, help="scenes.json of the data set")
    parser.add_argument("--split", default="val", help="split of the data set the captions belong to")
    parser.add_argument("--seed", type=int, default=0, help="which pictures the captions are swapped between")
    parser.add_argument("--json", type=Path, help="also write the scores to this file")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Score the captions against their own pictures and, as a floor, against swapped ones."""
    args = parse_args(argv)
    predictions = json.loads(args.predictions.read_text(encoding="utf-8"))
    captions = {int(entry["image_id"]): entry["caption"] for entry in predictions}
    split = json.loads(args.scenes.read_text(encoding="utf-8"))[args.split]
    scenes = {int(image_id): pieces for image_id, pieces in split.items()}
    scores = {
        "images": len(captions),
        "grounding": grounding_f1(captions, scenes),
        "swapped": swapped_f1(captions, scenes, args.seed),
    }
    for name in ("grounding", "swapped"):
        line = "  ".join(f"{key} {value:.3f}" for key, value in scores[name].items())
        print(f"{name:>9}: {line}")
    if args.json:
        args.json.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
