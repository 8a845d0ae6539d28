"""What evaluations of captions and of answers have in common: flags, sets, the engine, answers in a result folder."""

import argparse
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from internvl.cli import Parser
from internvl.data.row_groups import RowKey
from internvl.data.video import NUM_FRAMES
from internvl.device import detect_device
from internvl.distributed import barrier, broadcast_from_rank0, join_ranks, leave_ranks, rank_and_world_size
from internvl.errors import UserError
from internvl.evaluation.answers import AnswerLog
from internvl.evaluation.datasets import CaptionSet, present_sets, read_caption_set, read_custom_set, read_train_sets
from internvl.evaluation.generation import BATCH_TOKENS, generate_captions
from internvl.evaluation.questions import check_media
from internvl.evaluation.serving import connect, start_vllm
from internvl.inference.engine import DTYPES, Engine
from internvl.inference.requests import AnsweringEngine
from internvl.model.checkpoint import Checkpoint
from internvl.model.internvl_chat.conversation import IMAGE_PLACEHOLDER
from internvl.model.loading import load_config
from internvl.model.tiling import most_tiles
from internvl.model.vision_cache import VISION_CACHE_GB, VisionCache

logger = logging.getLogger("internvl.evaluation")
PUBLISHED_TILES = 6  # of the original's evaluation with --dynamic


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of the flags that all evaluations have."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="base, merged model, adapter or full checkpoint folder")
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="an adapter's base, if it is not where it says")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--datasets", help="names of eval/caption/datasets.json, comma separated, or present for all that are there"
    )
    which.add_argument("--annotation", type=Path, metavar="FILE", help="a JSONL file of training rows (with --root)")
    which.add_argument("--meta", type=Path, metavar="FILE", help="a training's meta file: score on the training rows")
    parser.add_argument("--root", type=Path, metavar="FOLDER", help="where the paths in --annotation start")
    parser.add_argument("--allow-outside-root", action="store_true", help="allow paths in rows that lead out of it")
    parser.add_argument("--prompt", help="asked about each image of --datasets instead of the set's own question")
    parser.add_argument("--batch-size", type=int, default=16, help="most questions a batch (default %(default)s)")
    parser.add_argument(
        "--batch-tokens",
        type=int,
        default=BATCH_TOKENS,
        help="most tokens a batch: prompts and answers of all beams (default %(default)s)",
    )
    parser.add_argument("--num-frames", type=int, default=NUM_FRAMES, help="frames of a video (default %(default)s)")
    parser.add_argument("--dynamic", action="store_true", help="cut images into tiles")
    parser.add_argument(
        "--max-num",
        type=int,
        help="most tiles of an image with --dynamic (default: the checkpoint's, as it was trained)",
    )
    parser.add_argument("--num-beams", type=int, default=1, help="beams; 1 is greedy (default %(default)s)")
    parser.add_argument("--min-new-tokens", type=int, help="of an answer (default: 8 of caption sets, 1 of rows)")
    parser.add_argument("--max-new-tokens", type=int, help="of an answer (default: 30 of caption sets, 128 of rows)")
    parser.add_argument("--temperature", type=float, default=0.0, help="above 0 samples (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling (default %(default)s)")
    parser.add_argument("--limit", type=int, help="only the first N questions of a set")
    parser.add_argument("--auto", action="store_true", help="one process, the model over all devices")
    parser.add_argument("--precision", default="auto", choices=["auto", *DTYPES], help="auto is the device's best")
    parser.add_argument(
        "--vision-cache", type=Path, metavar="FOLDER", help="keep images' features there; a training may share it"
    )
    parser.add_argument(
        "--vision-cache-gb", type=float, default=VISION_CACHE_GB, help="most that is kept (default %(default)s)"
    )
    parser.add_argument(
        "--engine",
        choices=["local", "vllm"],
        help="vllm: start vLLM on the checkpoint and ask it, --batch-size questions at once (default: local)",
    )
    parser.add_argument("--server", metavar="URL", help="ask a server that runs, such as vLLM, instead")
    parser.add_argument("--served-model", metavar="NAME", help="the checkpoint's name at --server, if it has several")
    parser.add_argument("--out-dir", type=Path, help="folder of the result (with one data set)")
    parser.add_argument(
        "--cluster",
        metavar="KEY",
        help="what questions belong together by, such as episode_id, or path:0 for the first folder of the image's "
        "path: intervals draw whole clusters",
    )
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse values that could not work, before anything is loaded."""
    for name in ("batch_size", "batch_tokens", "num_frames", "max_num", "num_beams", "limit", "max_new_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}: is {value}. Give a whole number from 1.")
    if args.vision_cache_gb <= 0:
        raise UserError(f"--vision-cache-gb: is {args.vision_cache_gb}. Give a number of gigabytes above 0.")
    if args.temperature < 0:
        raise UserError(f"--temperature: is {args.temperature}. Give 0 for greedy, or a number above.")
    if (args.annotation is None) != (args.root is None):
        raise UserError("--root: goes with --annotation: the folder that the paths in its rows start from.")
    if args.prompt and not args.datasets:
        raise UserError("--prompt: rows bring their own questions. Remove the flag, or use it with --datasets.")
    if args.served_model and not args.server:
        raise UserError("--served-model: goes with --server URL. Remove the flag.")
    if args.server and args.engine == "local":
        raise UserError("--server: does not go with --engine local. Remove one of the two.")
    if args.server or args.engine == "vllm":
        _check_server_arguments(args)


def _check_server_arguments(args: argparse.Namespace) -> None:
    """Refuse flags that have no effect, or another one, when a server answers."""
    flag = "--server" if args.server else "--engine vllm"
    if args.num_beams > 1:
        raise UserError(f"--num-beams: is {args.num_beams}, and {flag} searches with one. Remove one of the two.")
    if args.vision_cache:
        raise UserError(f"--vision-cache: has no effect with {flag}. Remove one of the two.")
    if (world_size := rank_and_world_size()[1]) > 1:
        raise UserError(f"GPUS: is {world_size}, and with {flag} one process asks. Set GPUS=1.")
    if args.server and args.precision != "auto":
        raise UserError(f"--precision: is {args.precision}, and with --server the server decides. Remove the flag.")


def choose_tile_limit(args: argparse.Namespace, checkpoint: Checkpoint) -> int:
    """Return the most tiles of an image: ``--max-num``, or what the checkpoint was trained with."""
    if not args.dynamic:
        return 1
    if args.max_num is not None:
        return args.max_num
    limit = most_tiles(load_config(checkpoint))
    if limit != PUBLISHED_TILES:
        logger.info(
            "Images are cut into at most %d tiles, as in the training of %s. Published scores use %d (--max-num %d).",
            *(limit, checkpoint.folder, PUBLISHED_TILES, PUBLISHED_TILES),
        )
    return limit


def _warn_of_other_base(adapter: Checkpoint) -> None:
    """Say so where an adapter is scored on other weights than it was trained on; a merge refuses them."""
    recorded, base = adapter.recorded_base_sha256, adapter.base()
    if recorded and recorded != base.sha256():
        logger.warning(
            "%s: was trained on a base with other weights than %s has now (SHA-256 %s… recorded), so these are not "
            "the scores of that training. --base names another folder.",
            *(adapter.folder, base.folder, recorded[:12]),
        )


def read_sets(args: argparse.Namespace) -> list[CaptionSet]:
    """Return the sets to score, as far as ``--limit`` goes.

    Raises:
        UserError: one of them is not in order, or a flag does not go with several.
    """
    rules: dict[str, Any] = {
        "allow_outside_root": args.allow_outside_root,
        "cluster": RowKey.parse(args.cluster, "--cluster") if args.cluster else None,
    }
    if args.annotation:
        sets = [read_custom_set(args.annotation, args.root, **rules)]
    elif args.meta:
        sets = read_train_sets(args.meta, **rules)
    else:
        names = args.datasets.split(",")
        if names == ["present"]:
            names, absent = present_sets()
            for sentence in absent:
                logger.info(sentence)
        sets = [read_caption_set(name, args.prompt, **rules) for name in names]
    for flag, value in (("--out-dir", args.out_dir), ("--compare", getattr(args, "compare", None))):
        if value and len(sets) > 1:
            names = ", ".join(data.name for data in sets)
            raise UserError(f"{flag}: names one folder for several data sets ({names}). Score them one by one.")
    return [data.first(args.limit) for data in sets]


def result_folder(args: argparse.Namespace, kind: str, data: CaptionSet) -> Path:
    """Return ``--out-dir``, or results/<kind>-<set>/<last two parts of the checkpoint's path>/<time>."""
    if args.out_dir:
        return args.out_dir
    model_name = "_".join(Path(args.checkpoint).resolve().parts[-2:])
    set_name = re.sub(r"[/\\]|^\.+", "_", data.name)  # names of data sets are the user's and may be no folder names
    return Path("results") / f"{kind}-{set_name}" / model_name / time.strftime("%Y%m%d-%H%M%S")


def _check_output(parent: Path) -> None:
    """Make sure that results can be written below ``parent``, without making it: the checkpoint may yet be refused.

    Raises:
        UserError: they cannot.
    """
    there = next(folder for folder in (parent, *parent.parents) if os.path.lexists(folder))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as err:
        raise UserError(f"{parent}: cannot be written to ({err.strerror}). Pass another folder as --out-dir.") from err


def _open_log(parent: Path, settings: dict) -> AnswerLog:
    """Open the answers that earlier runs of the same evaluation left below ``parent``."""
    log = AnswerLog(parent, settings, rank=rank_and_world_size()[0])
    barrier()  # all share out the same rest: nobody answers before everybody has read
    return log


@contextmanager
def _open_engine(
    args: argparse.Namespace, checkpoint: Checkpoint, sets: Sequence[CaptionSet], sizes: dict[Path, tuple[int, int]]
) -> Iterator[AnsweringEngine]:
    """Yield what answers the questions of ``sets``: the checkpoint loaded here, or a server, as the flags say.

    ``sizes`` are those of the images in px, by file.
    """
    if not args.server and args.engine != "vllm":
        engine = Engine.load(checkpoint, precision=args.precision, auto=args.auto, max_tiles=args.max_num)
        if args.vision_cache:
            max_bytes = round(args.vision_cache_gb * 1e9)
            engine.images.cache = VisionCache(args.vision_cache, engine.model, max_bytes=max_bytes)
        yield engine
        return
    if args.server:
        yield connect(checkpoint, args.server, args.served_model, max_tiles=args.max_num, seed=args.seed)
        return
    with start_vllm(
        checkpoint,
        [question for data in sets for question in data.questions],
        sizes,
        max_tiles=args.max_num,
        num_frames=args.num_frames,
        max_new_tokens=max(_max_new_tokens(args, data) for data in sets),
        precision=args.precision,
        all_devices=args.auto,
        seed=args.seed,
    ) as server_engine:
        yield server_engine


def _max_new_tokens(args: argparse.Namespace, data: CaptionSet) -> int:
    """Return the most tokens of an answer."""
    return args.max_new_tokens or data.max_new_tokens


@dataclass(frozen=True)
class Answered:
    """A set that is answered.

    ``predictions`` are ``{"image_id", "caption"}`` of each question, ``settings`` how they came about, and ``log``
    holds the answers on disk until the result is written.
    """

    folder: Path
    data: CaptionSet
    predictions: list[dict]
    settings: dict
    log: AnswerLog


def _answer_set(
    args: argparse.Namespace,
    engine: AnsweringEngine,
    kind: str,
    data: CaptionSet,
    sizes: dict[Path, tuple[int, int]],
    sha256: str,
    first: bool,
) -> Answered:
    """Answer all questions of a set.

    Args:
        args: the flags.
        engine: what answers.
        kind: of the task, caption or answers.
        data: the set.
        sizes: of its images in px.
        sha256: of the checkpoint's weights.
        first: whether this is the process that prints.
    """
    generation = {
        "num_beams": args.num_beams,
        "min_new_tokens": data.min_new_tokens if args.min_new_tokens is None else args.min_new_tokens,
        "max_new_tokens": _max_new_tokens(args, data),
        "do_sample": args.temperature > 0,
    }
    if args.temperature > 0:
        generation["temperature"] = args.temperature
    remote = bool(args.server) or args.engine == "vllm"
    precision = "server" if args.server else detect_device()[1] if args.precision == "auto" else args.precision
    settings = {  # all that decides what the answers are
        "checkpoint_sha256": sha256,
        **({"base": str(args.base)} if args.base else {}),
        "dataset": data.name,
        "prompt": args.prompt or _describe_prompt(data),
        **generation,
        "dynamic": args.dynamic,
        "max_num": args.max_num,
        "num_frames": args.num_frames,
        "precision": precision,
        "engine": "vllm" if remote else "local",
        "vision_cache": args.vision_cache is not None,  # its features are rounded to bfloat16
        "seed": args.seed,
    }
    folder = broadcast_from_rank0(lambda: result_folder(args, kind, data))
    log = _open_log(folder.parent, {**settings, "questions": [repr(question) for question in data.questions]})
    answered = len(log.done)
    if first and answered:
        print(f"Continuing: {answered} of {len(data.questions)} questions are answered in {log.folder}.")
    started = time.monotonic()
    predictions = generate_captions(
        engine,
        data,
        sizes,
        log,
        batch_size=args.batch_size,
        batch_tokens=sys.maxsize if remote else args.batch_tokens,  # a server looks after its memory itself
        num_frames=args.num_frames,
        **generation,
    )
    seconds = time.monotonic() - started
    log.close()
    settings = {
        "checkpoint": str(args.checkpoint),
        **settings,
        **({"cluster": args.cluster} if args.cluster else {}),
        "batch_size": args.batch_size,
        "batch_tokens": args.batch_tokens,
        "processes": rank_and_world_size()[1],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "generation_seconds": round(seconds, 2),
        "images_per_second": round((len(predictions) - answered) / seconds, 2),
    }
    return Answered(folder, data, predictions, settings, log)


def _describe_prompt(data: CaptionSet) -> str:
    """Return the question of a set, or how many there are."""
    mark = f"{IMAGE_PLACEHOLDER}\n"
    prompts = {question.turns[-1].value.removeprefix(mark) for question in data.questions}
    return next(iter(prompts)) if len(prompts) == 1 else f"{len(prompts)} questions of the rows"


def evaluate(
    args: argparse.Namespace,
    kind: str,
    checkpoint: Checkpoint,
    sets: Sequence[CaptionSet],
    finish: Callable[[Answered], None],
) -> None:
    """Answer the questions of ``sets``; ``finish`` scores each on the first process, which prints the result folders.

    Args:
        args: the flags.
        kind: of the task, caption or answers.
        checkpoint: what answers.
        sets: what is asked.
        finish: scores a set and writes its result.

    Raises:
        UserError: media are missing, the result could not be written, or the checkpoint is unfit.
    """
    for data in sets:
        _check_output(result_folder(args, kind, data).parent)
    sizes = check_media([question for data in sets for question in data.questions])
    first = join_ranks()
    torch.manual_seed(args.seed)
    if first and checkpoint.is_adapter:
        _warn_of_other_base(checkpoint)
    folders = []
    with _open_engine(args, checkpoint, sets, sizes) as engine:
        sha256 = broadcast_from_rank0(checkpoint.sha256)
        for data in sets:
            answered = _answer_set(args, engine, kind, data, sizes, sha256, first)
            if first:
                finish(answered)
                answered.log.remove()
            folders.append(answered.folder)
    leave_ranks()
    if first:
        for folder in folders:
            print(folder)
