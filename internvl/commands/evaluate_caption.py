"""Caption a data set with a checkpoint and score the captions.

    python eval/caption/evaluate_caption.py --checkpoint pretrained/InternVL2-2B --datasets coco --dynamic
    python eval/caption/evaluate_caption.py --checkpoint log/mine --annotation val.jsonl --root data/mine --dynamic
    python eval/caption/evaluate_caption.py --checkpoint log/mine --meta shell/data/habitat.json --limit 500
    python eval/caption/evaluate_caption.py --checkpoint log/mine --datasets coco --dynamic --engine vllm

Usually called by ``evaluate.sh``, which also starts several processes. The last line printed is the result folder:
``results/caption-<set>/<model>/<time>/`` with predictions.json, scores.json, per_image.jsonl and report.html. Every
answer is on disk as soon as it exists: the same command again continues a run that was killed. With ``--engine vllm``
or ``--server URL`` a server generates; prompts, tiles, files and resuming are the same.
"""

import argparse
from functools import partial
from pathlib import Path

from internvl.commands.evaluating import Answered, check_arguments, choose_tile_limit, evaluate, make_parser, read_sets
from internvl.errors import UserError, ends_on_user_error
from internvl.evaluation.compare import column_names, compare, print_differences
from internvl.evaluation.results import Result, read_result, write_results
from internvl.evaluation.score import check_scorers, print_scores, score_captions
from internvl.logging_utils import setup_logging
from internvl.model.checkpoint import Checkpoint


def score(args: argparse.Namespace, other: Result | None, answered: Answered) -> None:
    """Score the captions of a set and write the result; ``other`` is one to compare with."""
    data, folder = answered.data, answered.folder
    scores = score_captions(
        answered.predictions,
        data.ground_truth,
        allow_missing=args.limit is not None,
        allow_empty=True,
        clusters=data.clusters,
    )
    write_results(folder, data, answered.predictions, scores, answered.settings)
    print_scores(scores, data.name)
    if other:
        mine = read_result(folder)
        print_differences(column_names(other, mine), compare(other, mine, folder))


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--compare", type=Path, metavar="RESULT", help="result folder of another model, to compare with"
    )
    args = parser.parse_args(argv)
    setup_logging()
    check_arguments(args)
    checkpoint = Checkpoint(args.checkpoint, base=args.base)
    args.max_num = choose_tile_limit(args, checkpoint)
    sets = read_sets(args)
    other = read_result(args.compare) if args.compare else None
    if other and other.lines.keys() != {question.id for question in sets[0].questions}:
        raise UserError(
            f"{args.compare}: is a result of other images than {sets[0].name} has. Compare results of the same data "
            "set and --limit."
        )
    check_scorers()
    evaluate(args, "caption", checkpoint, sets, partial(score, args, other))
