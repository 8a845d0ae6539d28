"""Render the habitat data sets: furnished rooms in first person; captions and actions are exact by construction.

python tools/render_habitat.py --out data/habitat --style habitat --num-train 1150 --num-val 100
python tools/render_habitat.py --out data/pretrain --style pretrain --num-train 16000
python tools/render_habitat.py --out data/habitat_nav --episodes --num-train 300 --num-val 40 --size 160
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from habitat.dataset import STYLES, write_dataset
from habitat.episodes import write_episodes


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command-line options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write the data set to")
    parser.add_argument("--style", choices=STYLES, default="habitat", help="wording of the annotations")
    parser.add_argument("--episodes", action="store_true", help="walks to a piece of furniture, one a room, instead")
    parser.add_argument("--num-train", type=int, default=600, help="training images, or episodes")
    parser.add_argument("--num-val", type=int, default=100, help="validation images (style habitat only), or episodes")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other scenes")
    parser.add_argument("--size", type=int, default=256, help="width and height of the images in pixels")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="rendering processes")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Render and write the data set."""
    args = parse_args(argv)
    if args.episodes:
        write_episodes(args.out, args.num_train, args.num_val, args.seed, args.size, args.workers)
    else:
        write_dataset(args.out, args.style, args.num_train, args.num_val, args.seed, args.size, args.workers)
    images = list((args.out / "images").rglob("*.jpg"))
    total = sum(image.stat().st_size for image in images)
    print(f"{len(images)} images, {total / 1e6:.1f} MB in {args.out}")


if __name__ == "__main__":
    main()
