"""Caption a data set with a checkpoint and score the captions.

    python eval/caption/evaluate_caption.py --checkpoint pretrained/InternVL2-2B --datasets coco --dynamic

Usually called by ``evaluate.sh``, which also starts several processes. The last line printed is the result folder:
``results/caption-<set>/<model>/<time>/`` with predictions.json, scores.json, per_image.jsonl and report.html. Every
answer is on disk as soon as it exists: the same command again continues a run that was killed.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from internvl.device import detect_device
from internvl.errors import UserError, ends_on_user_error
from internvl.evaluation.answers import AnswerLog
from internvl.evaluation.datasets import CaptionSet, read_caption_set
from internvl.evaluation.generation import generate_captions
from internvl.evaluation.results import print_scores, write_results
from internvl.evaluation.score import check_scorers, score_captions
from internvl.inference.engine import DTYPES, Engine
from internvl.logging_utils import setup_logging
from internvl.model.checkpoint import Checkpoint


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="base, merged model, adapter or full checkpoint folder")
    parser.add_argument("--datasets", default="coco", help="names of eval/caption/datasets.json, comma separated")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures a batch (default %(default)s)")
    parser.add_argument("--dynamic", action="store_true", help="cut pictures into tiles")
    parser.add_argument("--max-num", type=int, default=6, help="most tiles with --dynamic (default %(default)s)")
    parser.add_argument("--num-beams", type=int, default=1, help="beams; 1 is greedy (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="above 0 samples (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling (default %(default)s)")
    parser.add_argument("--limit", type=int, help="only the first N pictures")
    parser.add_argument("--auto", action="store_true", help="one process, the model over all devices")
    parser.add_argument("--precision", default="auto", choices=["auto", *DTYPES], help="auto is the device's best")
    parser.add_argument("--out-dir", type=Path, help="folder of the result (with one data set)")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse values that could not work, before anything is loaded."""
    for name in ("batch_size", "max_num", "num_beams", "limit"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}: is {value}. Give a whole number from 1.")
    if args.temperature < 0:
        raise UserError(f"--temperature: is {args.temperature}. Give 0 for greedy, or a number above.")
    if args.out_dir and "," in args.datasets:
        raise UserError(f"--out-dir: names one folder for several data sets ({args.datasets}). Score them one by one.")


def result_folder(args: argparse.Namespace, data: CaptionSet) -> Path:
    """Return ``--out-dir``, or results/caption-<set>/<last two parts of the checkpoint's path>/<time>."""
    if args.out_dir:
        return args.out_dir
    model_name = "_".join(Path(args.checkpoint).resolve().parts[-2:])
    return Path("results") / f"caption-{data.name}" / model_name / time.strftime("%Y%m%d-%H%M%S")


def from_first(make: Callable[[], Any] | None) -> Any:
    """Return on every process what ``make`` returns on the first one; the others pass None."""
    values = [make() if make else None]
    if distributed.is_initialized():
        distributed.broadcast_object_list(values)
    return values[0]


def open_log(parent: Path, settings: dict) -> AnswerLog:
    """Open the answers that earlier runs of the same evaluation left below ``parent``.

    Raises:
        UserError: it cannot be written to.
    """
    try:
        return AnswerLog(parent, settings, rank=distributed.get_rank() if distributed.is_initialized() else 0)
    except OSError as err:
        raise UserError(f"{parent}: cannot be written to ({err.strerror}). Pass another folder as --out-dir.") from err


def start_processes() -> bool:
    """Join the other processes if torchrun started several; returns whether this is the first."""
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return not distributed.is_initialized() or distributed.get_rank() == 0


def evaluate_set(args: argparse.Namespace, engine: Engine, data: CaptionSet, sha256: str, first: bool) -> Path:
    """Caption a set and, on the first process, score it and write the result; returns the result folder.

    ``sha256`` is that of the checkpoint's weights.
    """
    generation = {
        "num_beams": args.num_beams,
        "min_new_tokens": data.min_new_tokens,
        "max_new_tokens": data.max_new_tokens,
        "do_sample": args.temperature > 0,
    }
    if args.temperature > 0:
        generation["temperature"] = args.temperature
    settings = {  # all that decides what the answers are
        "checkpoint_sha256": sha256,
        "dataset": data.name,
        "prompt": data.prompt,
        **generation,
        "dynamic": args.dynamic,
        "max_num": args.max_num if args.dynamic else 1,
        "precision": detect_device()[1] if args.precision == "auto" else args.precision,
        "seed": args.seed,
    }
    folder = from_first((lambda: result_folder(args, data)) if first else None)
    log = open_log(folder.parent, {**settings, "images": [str(path) for _, path in data.images]})
    answered = len(log.done)
    if first and answered:
        print(f"Continuing: {answered} of {len(data.images)} pictures are answered in {log.folder}.")
    started = time.monotonic()
    predictions = generate_captions(engine, data, log, batch_size=args.batch_size, **generation)
    seconds = time.monotonic() - started
    log.close()
    if not first:
        return folder
    scores = score_captions(predictions, data.ground_truth, allow_missing=args.limit is not None)
    settings = {
        "checkpoint": str(args.checkpoint),
        **settings,
        "batch_size": args.batch_size,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "generation_seconds": round(seconds, 2),
        "pictures_per_second": round((len(predictions) - answered) / seconds, 2),
    }
    write_results(folder, data, predictions, scores, settings)
    log.remove()
    print_scores(data.name, scores)
    return folder


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    setup_logging()
    check_arguments(args)
    checkpoint = Checkpoint(args.checkpoint)
    sets = [read_caption_set(name) for name in args.datasets.split(",")]
    check_scorers()
    first = start_processes()
    torch.manual_seed(args.seed)
    engine = Engine.load(
        args.checkpoint, precision=args.precision, auto=args.auto, max_tiles=args.max_num if args.dynamic else 1
    )
    sha256 = from_first(checkpoint.sha256 if first else None)
    folders = [
        evaluate_set(args, engine, replace(data, images=data.images[: args.limit]), sha256, first) for data in sets
    ]
    if distributed.is_initialized():
        distributed.destroy_process_group()
    if first:
        for folder in folders:
            print(folder)


if __name__ == "__main__":
    main()
