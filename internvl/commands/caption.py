"""Caption images and videos: a folder, files, or a list of them.

    python tools/caption.py log/habitat/lora_annots_1 photos/ --out captions.jsonl
    python tools/caption.py MODEL list.jsonl --prompt "What is it?" --out answers.jsonl --save-table answers.csv
    python tools/caption.py MODEL photos/ --out captions.jsonl --num-samples 5      # the one the others agree with

A list is a text file with a path a line, or JSONL with ``image`` or ``video`` and, where another one is to be asked,
``prompt``; paths in it start from its own folder. OUT is JSONL that can be trained on, with paths from the folder that
is printed at the end. A file that cannot be read is listed, and the rest goes on. The same command continues where an
earlier one was stopped. torchrun starts it on several devices.
"""

import argparse
import csv
import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from internvl.cli import Parser
from internvl.data.annotation import parse_line
from internvl.data.conversion import write_lines
from internvl.data.image_files import image_suffixes
from internvl.data.media import read_image, read_info
from internvl.data.problems import RowError
from internvl.data.video import NUM_FRAMES, VIDEO_SUFFIXES
from internvl.distributed import barrier, join_ranks, leave_ranks, rank_and_world_size
from internvl.errors import UserError, ends_on_user_error, shorten
from internvl.evaluation.answers import AnswerLog
from internvl.evaluation.datasets import PROMPT, CaptionSet
from internvl.evaluation.generation import BATCH_TOKENS, generate_captions
from internvl.evaluation.questions import Question
from internvl.evaluation.score import check_scorers
from internvl.evaluation.serving import start_vllm
from internvl.inference.engine import Engine
from internvl.json_files import UTF8_MARK
from internvl.logging_utils import setup_logging
from internvl.model.checkpoint import Checkpoint
from internvl.model.internvl_chat.conversation import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, Turn
from internvl.model.loading import load_config
from internvl.model.tiling import most_tiles
from internvl.progress import Progress
from internvl.reward.consensus import SamplingEngine, choose_by_consensus

logger = logging.getLogger("internvl.caption")


@dataclass(frozen=True)
class Item:
    """One thing to caption: its file, what is asked, and where it was named, for messages."""

    path: Path
    prompt: str
    is_video: bool
    where: str

    @property
    def text(self) -> str:
        """The question with its mark."""
        return f"{VIDEO_PLACEHOLDER if self.is_video else IMAGE_PLACEHOLDER}\n{self.prompt}"


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL", help="base, merged model or adapter")
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="images, videos, folders, or lists")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSONL file to write")
    parser.add_argument("--prompt", default=PROMPT, metavar="TEXT", help="what is asked (default: %(default)s)")
    parser.add_argument("--save-table", type=Path, metavar="CSV", help="also write a table of file, prompt and answer")
    parser.add_argument(
        "--engine", choices=["local", "vllm"], default="local", help="what answers (default %(default)s)"
    )
    parser.add_argument("--max-num", type=int, metavar="N", help="most tiles of an image (default: the model's own)")
    parser.add_argument(
        "--num-frames", type=int, default=NUM_FRAMES, metavar="N", help="of a video (default %(default)s)"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, metavar="N", help="of an answer (default %(default)s)"
    )
    parser.add_argument("--num-beams", type=int, default=1, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--num-samples", type=int, default=1, metavar="N", help="draw N answers to each instead (default: greedy)"
    )
    parser.add_argument(
        "--choose",
        choices=["consensus", "all"],
        default="consensus",
        help="of several answers: the one with the highest CIDEr-D against the others, or a row of each "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.5, help="of drawing several answers (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of drawing several answers (default %(default)s)")
    parser.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="answered at once (default %(default)s)"
    )
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    parser.add_argument("--auto", action="store_true", help="spread a model that does not fit one device over all")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it is there")
    return parser


def find_items(inputs: list[Path], prompt: str) -> list[Item]:
    """Return what the inputs name, each file once, folders in the order of their names.

    Raises:
        UserError: an input is not there, is of no known kind, or a line of a list does not name a file.
    """
    found: dict[tuple[Path, str], Item] = {}
    for path in inputs:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file() and _kind(file) in ("image", "video"))
            if not files:
                raise UserError(f"{path}: holds no image or video. Name another folder.")
            items: Iterator[Item] = (Item(file, prompt, _kind(file) == "video", str(file)) for file in files)
        elif not path.is_file():
            raise UserError(f"{path}: there is no such file. Correct the path.")
        elif _kind(path) in ("image", "video"):
            items = iter([Item(path, prompt, _kind(path) == "video", str(path))])
        elif _kind(path) == "list":
            items = _read_list(path, prompt)
        else:
            raise UserError(f"{path}: is neither an image, a video, a folder, nor a list (.jsonl, .txt). Convert it.")
        for item in items:
            found.setdefault((item.path, item.prompt), item)
    return list(found.values())


def _kind(path: Path) -> str:
    """Return what a file is by its suffix: image, video, list, or nothing."""
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".txt"):
        return "list"
    return "image" if suffix in image_suffixes() else "video" if suffix in VIDEO_SUFFIXES else ""


def _read_list(path: Path, prompt: str) -> Iterator[Item]:
    """Yield the items of a list; errors as of :func:`find_items`."""
    for number, line in enumerate(path.read_bytes().removeprefix(UTF8_MARK).splitlines(), 1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        if path.suffix.lower() == ".txt":
            file = path.parent / os.fsdecode(line.strip())
            yield Item(file, prompt, _kind(file) == "video", where)
            continue
        row = parse_line(line, where)
        fields = row if isinstance(row, dict) else {}
        media = {key: fields[key] for key in ("image", "video") if fields.get(key)}
        if len(media) != 1 or not all(isinstance(name, str) for name in media.values()):
            raise UserError(f"{where}: is {shorten(row)}, not an object with one image or video. Give its path.")
        (key, name), own = *media.items(), fields.get("prompt", prompt)
        if not isinstance(own, str) or not own.strip():
            raise UserError(f"{where}: prompt is {shorten(own)}. Give a text, or leave it out.")
        yield Item(path.parent / name, own, key == "video", where)


def leave_out_unreadable(items: list[Item]) -> tuple[list[Item], dict[Path, tuple[int, int]]]:
    """Return the items whose files can be read, and the images' (width, height) in px; the others are listed.

    Raises:
        UserError: none can be read.
    """
    good, bad, sizes = [], [], {}
    for item in Progress(items, desc="Reading", unit=" files", delay=1):
        try:
            if item.is_video:
                read_info(item.path, item.where)
            else:  # to its end: a header may be whole where the rest is missing
                sizes[item.path] = read_image(item.path, item.where).size
        except RowError as err:
            bad.append(str(err))
        else:
            good.append(item)
    for message in bad:
        logger.warning("Left out: %s", message)
    if not good:
        raise UserError(f"none of {len(items)} files can be read; the reasons are above. Name others.")
    return good, sizes


def answer(
    args: argparse.Namespace, items: list[Item], sizes: dict[Path, tuple[int, int]]
) -> tuple[list[str], AnswerLog]:
    """Return the answers to all items, in their order; those of an earlier run that was stopped are taken over.

    The log holds them until they are written elsewhere. ``sizes`` are the images' (width, height) in px.
    """
    checkpoint = Checkpoint(args.model)
    max_tiles = args.max_num or most_tiles(load_config(checkpoint))
    questions = [
        Question(
            number,
            (Turn("human", item.text),),
            item.where,
            images=() if item.is_video else (item.path,),
            video=item.path if item.is_video else None,
        )
        for number, item in enumerate(items)
    ]
    data = CaptionSet("files", questions, {}, max_new_tokens=args.max_new_tokens)
    generation = {"num_beams": args.num_beams, "max_new_tokens": args.max_new_tokens, "do_sample": False}
    draws = {name: getattr(args, name) for name in ("num_samples", "temperature", "seed")}
    settings = {
        "checkpoint_sha256": checkpoint.sha256(), "questions": [repr(question) for question in questions],
        "max_tiles": max_tiles, "num_frames": args.num_frames, "precision": args.precision, **generation,
        **(draws if args.num_samples > 1 else {}),
    }  # fmt: skip
    log = AnswerLog(args.out.absolute().parent, settings, rank=rank_and_world_size()[0])
    barrier()  # all share out the same rest
    if log.done:
        logger.info("Continuing: %d of %d are answered already.", len(log.done), len(items))
    options = {"batch_size": args.batch_size, "num_frames": args.num_frames, **generation}
    if args.engine == "vllm":
        with start_vllm(
            checkpoint, questions, sizes, max_tiles=max_tiles, num_frames=args.num_frames,
            max_new_tokens=args.max_new_tokens, precision=args.precision, all_devices=args.auto,
        ) as server:  # fmt: skip
            captions = generate_captions(server, data, sizes, log, batch_tokens=sys.maxsize, **options)
    else:
        kind = SamplingEngine if args.num_samples > 1 else Engine
        engine = kind.load(checkpoint, precision=args.precision, auto=args.auto, max_tiles=max_tiles)
        if isinstance(engine, SamplingEngine):
            vars(engine).update(draws)
        captions = generate_captions(engine, data, sizes, log, batch_tokens=BATCH_TOKENS, **options)
    barrier()
    log.close()
    return [entry["caption"] for entry in captions], log


def choose(args: argparse.Namespace, items: list[Item], answers: list[str]) -> tuple[list[Item], list[str]]:
    """Return the rows to write, items and their answers: of several answers to an item the chosen, or all of them."""
    if args.num_samples == 1:
        return items, answers
    samples: list[list[str]] = [json.loads(answer) for answer in answers]
    if args.choose == "all":
        pairs = [(item, text) for item, texts in zip(items, samples, strict=True) for text in texts]
        return [item for item, _ in pairs], [text for _, text in pairs]
    chosen = choose_by_consensus(dict(enumerate(samples)))
    return items, [chosen[number] for number in range(len(items))]


def check_draws(args: argparse.Namespace) -> None:
    """Refuse settings of several answers that do not go together.

    Raises:
        UserError: names the flag.
    """
    if args.num_samples == 1:
        return
    if args.engine == "vllm":
        raise UserError(
            f"--num-samples: is {args.num_samples}, and --engine vllm gives one answer. Remove one of the two."
        )
    if args.num_beams > 1:
        raise UserError(
            f"--num-beams: is {args.num_beams}, and --num-samples draws instead of searching. Remove one of the two."
        )
    if not 0 < args.temperature <= 10:
        raise UserError(f"--temperature: is {args.temperature}. Give a number above 0, such as 0.5.")
    if args.choose == "consensus":
        if args.num_samples == 2:
            raise UserError("--num-samples: is 2, of which none has more agreement. Give 3 or more, or --choose all.")
        check_scorers()


def write(args: argparse.Namespace, items: list[Item], answers: list[str]) -> Path:
    """Write the rows, and the table if one is asked for; return the folder that the rows' paths start from."""
    root = Path(os.path.commonpath([item.path.absolute().parent for item in items]))
    write_lines(
        args.out,
        (
            {
                "id": number,
                "video" if item.is_video else "image": item.path.absolute().relative_to(root).as_posix(),
                "conversations": [{"from": "human", "value": item.text}, {"from": "gpt", "value": text}],
            }
            for number, (item, text) in enumerate(zip(items, answers, strict=True))
        ),
    )
    if args.save_table:
        with open(args.save_table, "w", encoding="utf-8", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(["file", "prompt", "answer"])
            table.writerows((item.path, item.prompt, text) for item, text in zip(items, answers, strict=True))
    return root


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    setup_logging()
    for flag in ("max_num", "num_frames", "max_new_tokens", "num_beams", "num_samples", "batch_size"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')}: is {value}. Give 1 or more.")
    if not args.prompt.strip():
        raise UserError("--prompt: is empty. Give a text.")
    if args.out.exists() and not args.overwrite:
        raise UserError(f"{args.out}: is there already. Name another file, or pass --overwrite.")
    if not args.out.absolute().parent.is_dir():
        raise UserError(f"{args.out.absolute().parent}: there is no such folder. Create it, or name another file.")
    check_draws(args)
    first = join_ranks()
    items, sizes = leave_out_unreadable(find_items(args.inputs, args.prompt))
    answers, log = answer(args, items, sizes)
    if first:
        items, answers = choose(args, items, answers)
        root = write(args, items, answers)
        log.remove()
        print(f"{len(items)} answers. In a meta file: root {root}, annotation {args.out}")
    leave_ranks()
