"""Time the check of training data on generated rows: per core, on all cores, and again from the kept result.

    python benchmarks/check_data.py --rows 200000 --images 5000 --json check_data.json

Rows are captions of 5 to 25 words about one of the images, which are 640 × 480 JPEG files. Each way runs in a
process of its own; its peak resident memory is that of the largest process.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from internvl.data.check_cache import check_with_cache
from internvl.data.checking import check_dataset
from internvl.data.dataset import ConversationDataset
from internvl.data.meta import DatasetSpec
from internvl.data.tokenize import RenderSettings
from internvl.distributed import count_cores
from internvl.errors import ends_on_user_error
from internvl.json_files import write_json
from internvl.model.internvl_chat.conversation import get_conv_template
from internvl.model.internvl_chat.tokenization import load_tokenizer

WORDS = "a the man woman dog red small street on of with sitting standing holding near large table and two".split()
WAYS = ("one process", "all cores", "kept result")


def write_data(folder: Path, num_rows: int, num_images: int) -> None:
    """Write images and ``rows.jsonl``."""
    rng = random.Random(0)
    (folder / "images").mkdir()
    for number in range(num_images):
        color = tuple(rng.randrange(256) for _ in range(3))
        Image.new("RGB", (640, 480), color).save(folder / "images" / f"{number}.jpg")
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        for number in range(num_rows):
            caption = " ".join(rng.choices(WORDS, k=rng.randint(5, 25)))
            turns = [
                {"from": "human", "value": "<image>\nProvide a one-sentence caption for the provided image."},
                {"from": "gpt", "value": f"{caption} {number}."},
            ]
            row = {"id": number, "image": f"images/{number % num_images}.jpg", "conversations": turns}
            file.write(json.dumps(row) + "\n")


def measure(way: str, folder: Path, tokenizer: Path) -> dict:
    """Check the rows in ``folder`` once, in this process."""
    settings = RenderSettings(get_conv_template("internlm2-chat"), 448, 256, max_seq_length=4096)
    started = time.perf_counter()
    spec = DatasetSpec("generated", folder, (folder / "rows.jsonl",))
    data = ConversationDataset([spec], load_tokenizer(tokenizer), settings)
    opened = time.perf_counter()
    if way == "kept result":
        check = check_with_cache(data)
    else:
        check = check_dataset(data, processes=1 if way == "one process" else None)
    ended = time.perf_counter()
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "rows": len(check.files[0].row_stats),
        "errors": len(check.errors),
        "seconds_to_open": opened - started,
        "seconds": ended - opened,
        "rows_per_second": len(check.files[0].row_stats) / (ended - opened),
        "peak_mib": max(peaks) / 1024,
    }


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="default %(default)s")
    parser.add_argument("--images", type=int, default=5_000, help="default %(default)s")
    parser.add_argument("--tokenizer", type=Path, default=Path("pretrained/InternVL2-Tiny"), help="checkpoint folder")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--way", nargs=2, metavar=("WAY", "FOLDER"), help="check rows that are there; print JSON")
    args = parser.parse_args(argv)
    if args.way:
        print(json.dumps(measure(args.way[0], Path(args.way[1]), args.tokenizer)))
        return
    figures = {"cores": count_cores(), "images": args.images, "ways": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(folder, args.rows, args.images)
        # The first with a cache fills it.
        for way in (*WAYS, WAYS[-1]):
            command = [sys.executable, __file__, "--way", way, folder, "--tokenizer", args.tokenizer]
            environment = os.environ | {
                "INTERNVL_CACHE": str(folder / "cache"),
                "TOKENIZERS_PARALLELISM": "false" if way == "one process" else "true",
            }
            result = subprocess.run(map(str, command), env=environment, stdout=subprocess.PIPE, text=True, check=True)
            figures["ways"][way] = json.loads(result.stdout.splitlines()[-1])
    for way, values in figures["ways"].items():
        speed = f"{values['seconds']:.1f} s, {values['rows_per_second']:,.0f} rows/s"
        print(f"{way:<12} {values['rows']:,} rows: {speed}, peak {values['peak_mib']:,.0f} MiB")
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    main()
