"""Ask a checkpoint the questions of a data set and say how many answers are right.

    python eval/answers/evaluate_answers.py --checkpoint log/mine --annotation val.jsonl --root data/mine --match exact
    python eval/answers/evaluate_answers.py --checkpoint log/mine --meta nav.json --match json:action --cluster episode

Usually called by ``evaluate.sh MODEL answers-custom --annotation FILE --root FOLDER --match HOW``. The last line
printed is the result folder, ``results/answers-<set>/<model>/<time>/``, with predictions.json, scores.json,
per_answer.jsonl, confusion.png and report.html. The same command again continues a run that was killed.
"""

import argparse
from functools import partial
from pathlib import Path

from internvl.commands.evaluating import Answered, check_arguments, choose_tile_limit, evaluate, make_parser, read_sets
from internvl.errors import UserError, ends_on_user_error
from internvl.evaluation.answer_results import print_answer_differences, print_answer_scores, write_answer_results
from internvl.evaluation.answer_scores import check_references, clusters_needed, score_answers
from internvl.evaluation.bootstrap import paired_differences
from internvl.evaluation.datasets import CaptionSet
from internvl.evaluation.matching import KINDS, Match
from internvl.json_files import read_json
from internvl.logging_utils import setup_logging
from internvl.model.checkpoint import Checkpoint


def score(args: argparse.Namespace, match: Match, other: list[dict] | None, answered: Answered) -> None:
    """Score the answers of a set, write the result and print it; ``other`` are answers to compare with."""
    data, folder = answered.data, answered.folder
    scores = score_answers(answered.predictions, data.references(), match, clusters=data.clusters)
    write_answer_results(folder, data, answered.predictions, scores, match, answered.settings)
    noun = f"groups by {args.cluster}" if args.cluster else "drawn one by one"
    print_answer_scores(scores, data.name, noun)
    groups = [data.clusters[image_id] for image_id in scores.right] if data.clusters else None
    if args.power:
        count = clusters_needed(scores, args.power, groups)
        what = f"groups by {args.cluster}" if args.cluster else "answers"
        print(
            f"To see a difference of {args.power:g} in accuracy between two models (power 80 %, 5 %, not the same "
            f"questions): {count:,} {what}, of which there are {scores.num_clusters:,}."
        )
    if other is not None:
        before = score_answers(other, data.references(), match)
        names = str(args.compare), str(args.checkpoint)
        print_answer_differences(paired_differences(before.results, scores.results, clusters=groups), names)


def _read_other(folder: Path, data: CaptionSet) -> list[dict]:
    """Return the answers of an earlier result, in the order of a set's questions.

    Raises:
        UserError: it is no result, or of other questions.
    """
    file = folder / "predictions.json"
    if not file.is_file():
        raise UserError(f"{folder}: is not a result folder (no predictions.json). Give one that evaluate.sh printed.")
    content = read_json(file)
    lines = content if isinstance(content, list) else []
    by_id = {line.get("image_id"): line for line in lines if isinstance(line, dict) and "caption" in line}
    if by_id.keys() != {question.id for question in data.questions}:
        raise UserError(f"{folder}: is a result of other questions. Compare results of the same set and --limit.")
    return [by_id[question.id] for question in data.questions]


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--match", required=True, metavar="HOW", help=f"what is compared: {', '.join(KINDS)}")
    parser.add_argument(
        "--compare", type=Path, metavar="RESULT", help="result folder of another model, to compare with"
    )
    parser.add_argument(
        "--power", type=float, metavar="DIFFERENCE", help="say how many questions (or clusters) it takes to see it"
    )
    args = parser.parse_args(argv)
    setup_logging()
    match = Match.parse(args.match)
    if args.power is not None and not 0 < args.power < 1:
        raise UserError(f"--power: is {args.power}. Give a difference between 0 and 1, such as 0.02.")
    check_arguments(args)
    checkpoint = Checkpoint(args.checkpoint, base=args.base)
    args.max_num = choose_tile_limit(args, checkpoint)
    sets = read_sets(args)
    for data in sets:
        references = data.references()
        check_references({one.id: references[one.id] for one in data.questions}, match, data.questions[0].where)
    other = _read_other(args.compare, sets[0]) if args.compare else None
    evaluate(args, "answers", checkpoint, sets, partial(score, args, match, other))
