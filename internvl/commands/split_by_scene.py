"""Split a JSONL file of rows so that training and evaluation have no scene in common.

    python tools/split_by_scene.py rows.jsonl train.jsonl val.jsonl --scene-key scene_id
    python tools/split_by_scene.py rows.jsonl train.jsonl val.jsonl --scene-key path:0 --share 0.2 --seed 1

Rows about one room or one episode resemble each other: a model that has seen some of them is not tested by the others.
``--scene-key`` is a key of the rows (``info.scene`` for one inside another), ``path:N`` for the N-th part of the path
of the image or video (0 is the first folder, -1 the file), or ``path:REGEX`` for what a regular expression finds.
Lines are copied as they are. ``tools/check_data.py META --scene-key KEY --eval-meta META`` counts what two sets share.
"""

import argparse
from pathlib import Path

from internvl.cli import Parser
from internvl.data.row_groups import RowKey
from internvl.data.scenes import choose_scenes, scenes_of, split_file
from internvl.errors import UserError, ends_on_user_error


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, metavar="ROWS", help="JSONL to split")
    parser.add_argument("train", type=Path, metavar="TRAIN", help="file to write")
    parser.add_argument("evaluation", type=Path, metavar="VAL", help="file to write")
    parser.add_argument("--scene-key", required=True, metavar="KEY", help="what rows belong together by")
    parser.add_argument("--share", type=float, default=0.1, help="of rows to hold out, at least (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another one holds out other scenes")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    return parser


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if not 0 < args.share < 1:
        raise UserError(f"--share: is {args.share}. Give a share between 0 and 1, such as 0.1.")
    if not args.rows.is_file():
        raise UserError(f"{args.rows}: there is no such file. Give a JSONL file of rows.")
    for file in (args.train, args.evaluation):
        if file.exists() and not args.overwrite:
            raise UserError(f"{file}: is there already. Pass --overwrite, or name another file.")
    if len({path.resolve() for path in (args.rows, args.train, args.evaluation)}) < 3:
        raise UserError(f"{args.rows}: the three files have to be different ones. Name others.")
    key = RowKey.parse(args.scene_key, "--scene-key")
    rows = scenes_of([args.rows], key)
    held_out = choose_scenes(rows, args.share, args.seed)
    for file in (args.train, args.evaluation):
        file.parent.mkdir(parents=True, exist_ok=True)
    train, evaluation = split_file(args.rows, key, held_out, args.train, args.evaluation)
    print(f"{args.train}: {train:,} rows of {len(rows) - len(held_out):,} scenes")
    print(f"{args.evaluation}: {evaluation:,} rows of {len(held_out):,} scenes, {evaluation / rows.total():.1%}")
