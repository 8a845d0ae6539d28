"""Two models side by side: differences of their scores with intervals, and both captions of every image.

    python -m internvl.evaluation.compare results/caption-coco/base/… results/caption-coco/adapter/…

Both folders are results of evaluate.sh on the same images and references. Writes comparison.json and
comparison.html into the second, or into ``--out``.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from internvl.cli import Parser
from internvl.errors import UserError, ends_on_user_error
from internvl.evaluation.bootstrap import Difference, paired_differences
from internvl.evaluation.report import ReportRow, ReportTable, write_report
from internvl.evaluation.results import Result, read_result
from internvl.evaluation.score import CaptionScores, score_captions
from internvl.evaluation.wording import wording_rows
from internvl.json_files import write_json


def _check_comparable(first: Result, second: Result) -> None:
    """Refuse results whose differences would mean nothing.

    Raises:
        UserError: they are of other images or other references.
    """
    other = first.lines.keys() ^ second.lines.keys()
    if other:
        raise UserError(
            f"{first.folder}: has {len(first.lines)} images and {second.folder} has {len(second.lines)}; {len(other)} "
            f"are in one only, such as {next(iter(other))!r}. Compare results of the same data set and --limit."
        )
    for image_id, line in first.lines.items():
        if line.references != second.lines[image_id].references:
            raise UserError(
                f"{first.folder}: has other references than {second.folder} for image {image_id!r}. Compare results "
                "of the same data set."
            )


def compare(first: Result, second: Result, out: Path) -> dict[str, Difference]:
    """Score both anew, write comparison.json and comparison.html into ``out``, and return the differences.

    Raises:
        UserError: they cannot be compared.
    """
    _check_comparable(first, second)
    truth = first.ground_truth()
    before, after = (
        score_captions(result.predictions(), truth, allow_empty=True, predictions_name=str(result.folder))
        for result in (first, second)
    )
    differences = paired_differences(before.results, after.results)
    names = column_names(first, second)
    out.mkdir(parents=True, exist_ok=True)
    record = {
        "first": {"folder": str(first.folder), "settings": first.settings, **before.corpus},
        "second": {"folder": str(second.folder), "settings": second.settings, **after.corpus},
        "num_images": after.num_images,
        "differences": {name: asdict(difference) for name, difference in differences.items()},
    }
    write_json(out / "comparison.json", record)
    columns = ("score", *names, "difference", "95 % interval", "p")
    write_report(
        out / "comparison.html",
        title=" and ".join(names),
        scores=after.corpus,
        intervals=after.intervals,
        notes=[f"The scores above are those of {names[1]}.", *after.notes],
        tables=[
            ReportTable("Differences", columns, rows_of(before, after, differences)),
            ReportTable(
                "Wording",
                ("", *names, "references, the first of each"),
                wording_rows(before.wording, after.wording, after.reference_wording),
            ),
        ],
        rows=[
            ReportRow(
                images=line.images,
                video=Path(line.video) if line.video else None,
                image_id=image_id,
                references=line.references,
                predictions={names[0]: line.caption, names[1]: second.lines[image_id].caption},
                scores=after.per_image[image_id],
                change=after.per_image[image_id]["CIDEr"] - before.per_image[image_id]["CIDEr"],
            )
            for image_id, line in first.lines.items()
        ],
        provenance={name: str(result.folder) for name, result in zip(names, (first, second), strict=True)},
    )
    return differences


def column_names(first: Result, second: Result) -> tuple[str, str]:
    """Return the checkpoints' names, or the folders' where those are the same."""
    if first.name != second.name:
        return first.name, second.name
    return str(first.folder), f"{second.folder}{' again' if first.folder == second.folder else ''}"


def rows_of(
    before: CaptionScores, after: CaptionScores, differences: dict[str, Difference]
) -> list[tuple[str, float, float, str, str, str]]:
    """Return the rows of the table of differences."""
    return [
        (
            name,
            before.corpus[name],
            after.corpus[name],
            *describe(difference),
        )
        for name, difference in differences.items()
    ]


def describe(difference: Difference) -> tuple[str, str, str]:
    """Return difference, interval and p-value for a table; 1,000 resamples show no p-value below 0.001."""
    bounds = f"{difference.low:+.4f} – {difference.high:+.4f}"
    p_value = f"{difference.p_value:.3f}" if difference.p_value >= 0.001 else "< 0.001"
    return f"{difference.value:+.4f}", bounds, p_value


def print_differences(names: tuple[str, str], differences: dict[str, Difference]) -> None:
    """Print the differences as a table."""
    table = Table(title=escape(f"{names[1]} minus {names[0]}"))
    table.add_column("score")
    for column in ("difference", "95 % interval", "p"):
        table.add_column(column, justify="right")
    for name, difference in differences.items():
        table.add_row(name, *describe(difference))
    Console(highlight=False).print(table)


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Compare two result folders, print the differences and the page's path."""
    parser = Parser(
        prog="python -m internvl.evaluation.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("first", type=Path, help="result folder of the model to compare with")
    parser.add_argument("second", type=Path, help="result folder of the model in question")
    parser.add_argument("--out", type=Path, help="folder to write to (default: the second result folder)")
    args = parser.parse_args(argv)
    first, second = read_result(args.first), read_result(args.second)
    out = args.out or args.second
    print_differences(column_names(first, second), compare(first, second, out))
    print(out / "comparison.html")  # noqa: T201


if __name__ == "__main__":
    main()
