"""Check training data before anything trains: every row of a meta file, by file and line.

    python tools/check_data.py shell/data/habitat.json --model pretrained/InternVL2-2B --out report.json
    python tools/check_data.py shell/data/habitat.json --preview preview.html       # what the model is trained on
    python tools/check_data.py shell/data/habitat.json --write-clean cleaned        # good and rejected rows apart

Images and videos are judged by their headers; --deep decodes them. Any data flag of the finetune script may be given
(--max_seq_length, --max_dynamic_patch, --on_long_sample, …: internvl/train/internvl_chat_finetune.py --help), so that
rows are judged as that training would. Ends with status 2 when a row could not be trained on.
"""

import argparse
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from internvl.cli import Parser
from internvl.data.annotation import KINDS
from internvl.data.batch import Sample
from internvl.data.checking import BAD, DatasetCheck, Problem, check_dataset, first_of_each
from internvl.data.cleaning import write_clean
from internvl.data.dataset import ConversationDataset
from internvl.data.meta import read_meta
from internvl.data.preview import PreviewRow, write_preview
from internvl.data.row_groups import RowKey
from internvl.data.scenes import SharedScenes, scenes_of
from internvl.data.summary import summarize
from internvl.errors import UserError, ends_on_user_error
from internvl.json_files import write_json
from internvl.logging_utils import setup_logging
from internvl.model.checkpoint import Checkpoint
from internvl.model.loading import load_checkpoint_tokenizer, load_config
from internvl.repository import REPOSITORY
from internvl.train.arguments import DataArguments, ModelArguments, parse_data_arguments
from internvl.train.setup import check_against_config, render_settings

PUBLISHED, TINY = REPOSITORY / "pretrained" / "InternVL2-2B", REPOSITORY / "pretrained" / "InternVL2-Tiny"
SHOWN = 3  # problems of one reason that are printed
SHOWN_KINDS = 20  # kinds of answers


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("meta", type=Path, metavar="META", help="meta file, as --meta_path of a training")
    parser.add_argument(
        "--model",
        type=Path,
        help="checkpoint whose tokenizer and sizes count (default: InternVL2-2B, else the tiny one)",
    )
    parser.add_argument("--deep", action="store_true", help="decode every image and video")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything found to this JSON file")
    parser.add_argument(
        "--preview", type=Path, metavar="HTML", help="write a page that shows rows as they are trained on"
    )
    parser.add_argument("--preview-rows", type=int, default=4, metavar="N", help="of each kind (default %(default)s)")
    parser.add_argument("--write-clean", type=Path, metavar="FOLDER", help="write good and rejected rows there")
    parser.add_argument(
        "--scene-key",
        metavar="KEY",
        help="say how many scenes these rows and those of --eval-meta share: a key of the rows, path:N or path:REGEX",
    )
    parser.add_argument("--eval-meta", type=Path, metavar="META", help="meta file of the rows to evaluate on")
    parser.add_argument("--strict-split", action="store_true", help="shared scenes are an error")
    parser.add_argument("--seed", type=int, default=42, help="as --seed of the training (default %(default)s)")
    parser.add_argument("--processes", type=int, help="default: one per core")
    return parser


def _open_data(args: argparse.Namespace, data_args: DataArguments) -> ConversationDataset:
    """Return the data set as a training on ``args.model`` would render it."""
    checkpoint = Checkpoint(args.model or (PUBLISHED if PUBLISHED.is_dir() else TINY))
    config = load_config(checkpoint)
    check_against_config(ModelArguments(str(checkpoint.folder)), data_args, config)
    return ConversationDataset(
        read_meta(args.meta),
        load_checkpoint_tokenizer(checkpoint),
        render_settings(data_args, config),
        seed=args.seed,
    )


def print_summary(console: Console, report: dict) -> None:
    """Print a table of what is in each data set."""
    table = Table(title=escape(f"{report['meta']}, max_seq_length {report['max_seq_length']}"))
    table.add_column("")
    for name in report["datasets"]:
        table.add_column(escape(name), justify="right", overflow="fold")
    sets = list(report["datasets"].values())
    for title, value in (
        ("rows", lambda one: f"{one['rows']:,}"),
        ("declared", lambda one: "–" if one["declared"] is None else f"{one['declared']:,}"),
        ("in an epoch", lambda one: f"{one['rows_in_epoch']:,}"),
        ("text / image / images / video", lambda one: " / ".join(f"{n:,}" for n in one["kinds"].values())),
        ("turns, most", lambda one: f"{one['turns']['max']}"),
        ("text tokens, p50 / p95 / max", lambda one: _quantiles(one["text_tokens"])),
        ("image tokens, p50 / p95 / max", lambda one: _quantiles(one["image_tokens"])),
        ("tiles, p50 / p95 / max", lambda one: _quantiles(one["tiles"])),
        ("cut by max_seq_length", lambda one: f"{one['cut']:,}"),
        ("left out for their length", lambda one: f"{one['left_out']:,}"),
        ("there more than once", lambda one: f"{one['duplicates']:,}"),
        ("cannot be trained on", lambda one: f"{one['errors']:,}"),
    ):
        table.add_row(title, *map(value, sets))
    if any(one["weighted"] for one in sets):
        table.add_row("with weights other than 1", *(f"{one['weighted']:,}" for one in sets))
        table.add_row("left out for a weight of 0", *(f"{one['of_weight_0']:,}" for one in sets))
    for note in dict.fromkeys(note for one in sets for note in one["notes"]):
        table.add_row(escape(note), *(f"{one['notes'].get(note, 0):,}" for one in sets))
    console.print(table)
    for name, one in report["datasets"].items():
        if one["declared"] not in (None, one["rows"]):
            text = f"{name}: the meta file declares {one['declared']:,} rows; write {one['rows']:,}."
            console.print(text, markup=False)


def print_balance(console: Console, report: dict) -> None:
    """Print what each balanced data set's answers count, by kind, before and after."""
    for name, one in report["datasets"].items():
        if "balance" not in one:
            continue
        table = Table(title=escape(f"Answers of {name}"))
        table.add_column("kind", overflow="fold")
        for title in ("answers", "share", "times", "share after"):
            table.add_column(title, justify="right")
        for row in one["balance"][:SHOWN_KINDS]:
            before, after = (f"{row[key]:.1%}" for key in ("share_before", "share_after"))
            kind = escape(row["kind"]) or "(of no kind)"
            table.add_row(kind, f"{row['answers']:,g}", before, f"{row['factor']:.3g}", after)
        if len(one["balance"]) > SHOWN_KINDS:
            table.add_row(f"… and {len(one['balance']) - SHOWN_KINDS:,} more", "", "", "", "")
        console.print(table)


def shared_scenes(args: argparse.Namespace) -> SharedScenes | None:
    """Return the scenes of training and evaluation, where they are asked for.

    Raises:
        UserError: a flag comes without the others it needs, or rows do not name their scene.
    """
    if not args.scene_key and not args.eval_meta and not args.strict_split:
        return None
    if not args.scene_key or not args.eval_meta:
        raise UserError("--scene-key: goes with --eval-meta META, the rows to evaluate on. Give both.")
    key = RowKey.parse(args.scene_key, "--scene-key")
    files = ([file for spec in read_meta(meta) for file in spec.annotations] for meta in (args.meta, args.eval_meta))
    return SharedScenes(*(scenes_of(annotations, key) for annotations in files))


def _quantiles(numbers: dict) -> str:
    return " / ".join(f"{numbers[key]:,}" for key in ("p50", "p95", "max"))


def _print_problems(problems: list[Problem], title: str) -> None:
    """Print the first problems of each reason, the most frequent reason first."""
    for reason, count in Counter(problem.reason for problem in problems).most_common():
        print(f"\n{title}: {reason}, {count:,} {'row' if count == 1 else 'rows'}")
        same = [problem for problem in problems if problem.reason == reason]
        for problem in first_of_each(same, SHOWN):
            print(f"  {problem.message}")
        if count > SHOWN:
            print(f"  … and {count - SHOWN:,} more")


def preview_rows(dataset: ConversationDataset, check: DatasetCheck, per_kind: int) -> Iterator[PreviewRow]:
    """Yield rows of each data set and kind as training gets them, spread evenly over those that can be read."""
    row_stats = check.row_stats(dataset.index)
    readable = check.trains(dataset.index) & (row_stats["status"] != BAD)
    for spec in dataset.specs:
        own = np.isin(dataset.index[:, 0], dataset.file_numbers(spec))
        for number, kind in enumerate(KINDS):
            items = np.flatnonzero(own & (row_stats["kind"] == number) & readable)
            for item in items[np.linspace(0, len(items) - 1, min(per_kind, len(items)), dtype=int)]:
                file_number, row = dataset.index[item]
                sample = dataset[item]
                assert isinstance(sample, Sample), "the data set raises for rows that cannot be read"
                yield PreviewRow(
                    where=dataset.files[file_number][1].where(row),
                    kind=kind,
                    dataset=spec.name,
                    sample=sample,
                    num_tiles=_tiles_of_images(sample.input_ids, dataset),
                )


def _tiles_of_images(input_ids: torch.Tensor, dataset: ConversationDataset) -> tuple[int, ...]:
    """Return each image's number of tiles: the length of its run of image tokens says."""
    runs = itertools.groupby((input_ids == dataset.image_token_id).tolist())
    return tuple(len(list(run)) // dataset.settings.num_image_token for is_image, run in runs if is_image)


@ends_on_user_error
def main(argv: list[str] | None = None) -> int:
    args, flags = make_parser().parse_known_args(argv)
    setup_logging()
    scenes = shared_scenes(args)
    dataset = _open_data(args, parse_data_arguments(["--meta_path", str(args.meta), *flags]))
    check: DatasetCheck = check_dataset(dataset, deep=args.deep, processes=args.processes)
    report = {"meta": str(args.meta), **summarize(dataset, check)}
    print_summary(Console(), report)
    print_balance(Console(), report)
    dataset.balance(check.kinds(dataset))
    _print_problems(check.left_out, "left out")
    _print_problems(check.errors, "error")
    if scenes:
        print(f"\nScenes by {args.scene_key}: {scenes}.")
        report["scenes"] = {
            "key": args.scene_key,
            "train": len(scenes.train),
            "evaluation": len(scenes.evaluation),
            "both": scenes.both,
        }
    if args.out:
        write_json(args.out, report)
        print(f"\nWrote {args.out}")
    if args.preview:
        rows = preview_rows(dataset, check, args.preview_rows)
        write_preview(args.preview, rows, dataset.tokenizer, image_token_id=dataset.image_token_id)
        print(f"\nWrote {args.preview}")
    if args.write_clean:
        good, rejected = write_clean(dataset, check, args.meta, args.write_clean)
        print(f"\nWrote {good:,} good and {rejected:,} rejected rows, and a meta file, to {args.write_clean}")
    if scenes and scenes.both and args.strict_split:
        raise UserError(
            f"{args.eval_meta}: {len(scenes.both)} of its scenes are trained on, first {scenes.both[0]!r} "
            "(--strict-split). Split by scene: python tools/split_by_scene.py ROWS TRAIN VAL --scene-key "
            f"{args.scene_key}."
        )
    errors = len(check.errors)
    print(f"\n{errors:,} rows cannot be trained on." if errors else "\nEvery row can be trained on.")
    return 2 if errors else 0
