"""Time captioning in batches against one image at a time, and scoring; both ways must give the same captions.

    python benchmarks/evaluation.py --checkpoint pretrained/InternVL2-Tiny --dataset habitat --json evaluation.json

Both ways run in one process, in turn, ``--rounds`` times; the figures are medians. Scored are captions of
``--images`` images against five each, made of words of the data set's own references.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

from internvl.device import detect_device
from internvl.errors import UserError, ends_on_user_error
from internvl.evaluation.answers import AnswerLog
from internvl.evaluation.datasets import CaptionSet, read_caption_set
from internvl.evaluation.generation import generate_captions
from internvl.evaluation.questions import check_media
from internvl.evaluation.score import score_captions
from internvl.inference.engine import Engine
from internvl.json_files import write_json

REFERENCES = 5


def caption(engine: Engine, data: CaptionSet, batch_size: int) -> tuple[list[dict], float]:
    """Return the captions and the seconds they took, reading images included."""
    with tempfile.TemporaryDirectory() as folder:
        log = AnswerLog(Path(folder), {})
        started = time.perf_counter()
        captions = generate_captions(
            engine,
            data,
            check_media(data.questions),
            log,
            batch_size=batch_size,
            quiet=True,
            do_sample=False,
            min_new_tokens=data.min_new_tokens,
            max_new_tokens=data.max_new_tokens,
        )
        seconds = time.perf_counter() - started
        log.close()
    return captions, seconds


def time_scoring(data: CaptionSet, num_images: int) -> float:
    """Return the seconds that all scorers and intervals take."""
    rng = random.Random(0)
    texts = [text for captions in data.references().values() for text in captions]
    words = sorted({word for text in texts for word in text.split()})

    def make() -> str:
        text = rng.choice(texts).split()
        text[rng.randrange(len(text))] = rng.choice(words)
        return " ".join(text)

    truth = {
        "images": [{"id": number} for number in range(num_images)],
        "annotations": [{"image_id": k, "caption": make()} for k in range(num_images) for _ in range(REFERENCES)],
    }
    predictions = [{"image_id": number, "caption": make()} for number in range(num_images)]
    started = time.perf_counter()
    score_captions(predictions, truth)
    return time.perf_counter() - started


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="pretrained/InternVL2-Tiny")
    parser.add_argument("--dataset", default="habitat", help="name of eval/caption/datasets.json")
    parser.add_argument("--limit", type=int, help="only the first N images")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=5000, help="images to score (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(argv)
    data = read_caption_set(args.dataset).first(args.limit)
    engine = Engine.load(args.checkpoint, precision="fp32", max_tiles=6)
    seconds: dict[str, list[float]] = {"one by one": [], "batched": []}
    captions: dict[str, list[dict]] = {}
    for _ in range(args.rounds):
        for way, batch_size in (("one by one", 1), ("batched", args.batch_size)):
            captions[way], taken = caption(engine, data, batch_size)
            seconds[way].append(taken)
        if captions["batched"] != captions["one by one"]:
            raise UserError("The captions differ between the two ways. Please report this with the checkpoint.")
    median = {way: statistics.median(times) for way, times in seconds.items()}
    figures = {
        "device": detect_device()[0],
        "images": len(data.questions),
        "batch_size": args.batch_size,
        "median_seconds": median,
        "batched_over_one_by_one": median["one by one"] / median["batched"],
        "scored_images": args.images,
        "scoring_seconds": time_scoring(data, args.images),
    }
    for way, taken in median.items():
        print(f"{way}: {len(data.questions) / taken:.1f} images/s")
    print(f"batched over one by one: {figures['batched_over_one_by_one']:.2f}, same captions")
    print(f"scoring {args.images} × {REFERENCES}: {figures['scoring_seconds']:.1f} s")
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    main()
