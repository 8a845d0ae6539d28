"""Turn annotations of other tools into training rows, or training rows into messages.

    python tools/convert_annotations.py llava.json data/mine/train.jsonl --from llava --meta shell/data/mine.json \\
        --root data/mine/
    python tools/convert_annotations.py swift.jsonl train.jsonl --from messages       # ms-swift, OpenAI
    python tools/convert_annotations.py sharegpt.json train.jsonl --from sharegpt     # LLaMA-Factory
    python tools/convert_annotations.py pairs.jsonl train.jsonl --from preferences    # TRL, MMPR: chosen and rejected
    python tools/convert_annotations.py captions_train2014.json train.jsonl --from coco
    python tools/convert_annotations.py table.csv train.jsonl --from csv              # image,caption
    python tools/convert_annotations.py images/ train.jsonl --from imagefolder
    python tools/convert_annotations.py episodes/ train.jsonl --from episodes --root episodes/ --history 3 --depth
    python tools/convert_annotations.py annotations.json train.jsonl --from streamvln --root trajectory_data/R2R
    python tools/convert_annotations.py train.jsonl swift.jsonl --to messages

Rows are read and written one at a time, so millions take no more memory than a few. One that could not be trained on
ends the conversion with its place, or is left out, counted and listed with --skip-bad.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from internvl.cli import Parser
from internvl.data.conversion import CAPTION_PROMPT, FORMATS, Options, read_rows, to_messages, write_lines
from internvl.data.episodes import EpisodeOptions
from internvl.data.problems import RowError
from internvl.errors import UserError, ends_on_user_error
from internvl.json_files import write_json
from internvl.progress import Progress

# Which formats a flag of frames has an effect on.
STEPS = ("episodes", "navid", "streamvln")
USED_BY = {
    "history": STEPS,
    "every": STEPS,
    "conversation": ("episodes",),
    "answers": ("episodes",),
    "depth": ("episodes",),
    "depth_range": ("episodes",),
    "future": ("streamvln",),
    "frames": ("openeqa", "scanqa"),
}
SHOWN = 10  # messages about rows left out; all are counted


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, metavar="IN", help="file, or folder of images, to read")
    parser.add_argument("output", type=Path, metavar="OUT", help="JSONL file to write")
    parser.add_argument("--from", dest="source", choices=FORMATS, default="internvl", help="default: %(default)s")
    parser.add_argument("--to", dest="target", choices=["internvl", "messages"], default="internvl")
    parser.add_argument("--prompt", default=CAPTION_PROMPT, help="question about images that come with a caption")
    parser.add_argument("--delimiter", default=",", help="between columns (default: a comma)")
    parser.add_argument("--meta", type=Path, help="write a meta file for a training on OUT, too")
    parser.add_argument("--root", default="", help="folder where the paths of images start")
    add_episode_flags(parser)
    parser.add_argument("--skip-bad", action="store_true", help="leave out rows that could not be trained on")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT and the meta file if they are there")
    return parser


def add_episode_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how frames of an agent, or of a scene, become rows."""
    group = parser.add_argument_group("frames (--from episodes, navid, streamvln, openeqa, scanqa)")
    default = EpisodeOptions()
    group.add_argument("--history", type=int, default=0, help="earlier frames shown with each (default %(default)s)")
    group.add_argument("--every", type=int, default=1, help="of the history, every N-th frame (default %(default)s)")
    group.add_argument("--conversation", action="store_true", help="one growing conversation an episode")
    group.add_argument(
        "--answers", choices=["text", "json"], default="text", help="json: observation, thought, action"
    )
    group.add_argument("--depth", action="store_true", help="also show the depth image of the last frame")
    group.add_argument(
        "--depth-range",
        type=float,
        nargs=2,
        default=default.depth_range,
        metavar=("NEAR", "FAR"),
        help="metres that are black and white (default 0.5 5)",
    )
    group.add_argument("--future", type=int, default=0, help="actions in an answer behind the next one")
    group.add_argument("--frames", type=int, default=default.frames, help="of a scene (default %(default)s)")


def episode_options(args: argparse.Namespace) -> EpisodeOptions:
    """Return how frames become rows.

    Raises:
        UserError: a number cannot be, or a flag has no effect on the format.
    """
    for name, least in (("history", 0), ("every", 1), ("future", 0), ("frames", 1)):
        if getattr(args, name) < least:
            raise UserError(f"--{name}: is {getattr(args, name)}. Give a whole number from {least}.")
    near, far = args.depth_range
    if not 0 <= near < far:
        raise UserError(f"--depth-range: is {near:g} {far:g}. Give two numbers of metres, the nearer first.")
    options = EpisodeOptions(
        args.history, args.every, args.conversation, args.answers, args.depth, (near, far), args.future, args.frames
    )
    for name in (field.name for field in fields(options)):
        if getattr(options, name) != getattr(EpisodeOptions(), name) and args.source not in USED_BY[name]:
            raise UserError(
                f"--{name.replace('_', '-')}: has no effect on --from {args.source}, only on "
                f"{', '.join(USED_BY[name])}. Remove the flag."
            )
    return options


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what could not be done, or would replace a file, before anything is read."""
    if args.source == args.target == "internvl":
        raise UserError("command line: --from and --to are both internvl. Say what to convert with one of them.")
    if len(args.delimiter) != 1:
        raise UserError(f"--delimiter: is {args.delimiter!r}. Give one character.")
    if args.meta and args.target == "messages":
        raise UserError("--meta: is for a training here, which does not read messages. Leave out --meta or --to.")
    for file in filter(None, (args.output, args.meta)):
        if file.is_dir():
            raise UserError(f"{file}: is a folder. Name a file.")
        if file.exists() and not args.overwrite:
            raise UserError(f"{file}: is there already. Name another file, or pass --overwrite.")


def convert(args: argparse.Namespace, options: Options, kinds: Counter, left_out: Counter) -> Iterator[dict]:
    """Yield the rows to write; count them by kind, and those left out by reason.

    Raises:
        RowError: a row could not be trained on, and none is to be left out.
        UserError: no row is left, as with an input of another format.
    """
    for row, kind in Progress(read_rows(args.source, args.input, options), unit=" rows", delay=2):
        if isinstance(row, RowError):
            if not args.skip_bad:
                raise row
            if left_out.total() < SHOWN:
                print(f"left out: {row}", file=sys.stderr)
            left_out[row.reason] += 1
            continue
        kinds[kind] += 1
        yield to_messages(row) if args.target == "messages" else row
    if not kinds:
        why = f"all {left_out.total():,} were left out" if left_out else "none was found"
        raise UserError(f"{args.input}: gives no row ({why}). Correct it, or name the right format with --from.")


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    check_arguments(args)
    kinds, left_out = Counter(), Counter()
    root = Path(args.root) if args.root else None
    options = Options(prompt=args.prompt, delimiter=args.delimiter, root=root, episodes=episode_options(args))
    count = write_lines(args.output, convert(args, options, kinds, left_out))
    of_kinds = ", ".join(f"{kind} {number:,}" for kind, number in kinds.most_common()) or "none"
    print(f"Wrote {count:,} rows ({of_kinds}) to {args.output}.")
    for reason, number in left_out.most_common():
        print(f"Left out {number:,}: {reason}")
    if args.meta:
        entry = {"root": args.root, "annotation": str(args.output), "data_augment": False, "repeat_time": 1}
        args.meta.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.meta, {args.output.stem: entry | {"length": count}})
        print(f"Wrote {args.meta}. Check the data with: python tools/check_data.py {args.meta}")
