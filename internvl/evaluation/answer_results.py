"""The result folder of an evaluation of answers: files for programs, a page with every answer for people."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from internvl.evaluation.answer_scores import NOTHING, AnswerScores
from internvl.evaluation.bootstrap import Difference
from internvl.evaluation.datasets import CaptionSet
from internvl.evaluation.matching import Match
from internvl.evaluation.report import ReportRow, ReportTable, write_report
from internvl.evaluation.results import made_with
from internvl.json_files import encode_line, write_json

SHOWN_CLASSES = 12  # columns of a matrix on a terminal


def confusion_table(scores: AnswerScores) -> ReportTable:
    """Return the confusion matrix: a row for each kind that is wanted, a column for each that was said."""
    rows: list[list[str | int | float]] = [
        [kind, *counts, scores.confusion.get((kind, kind), 0) / sum(counts)]
        for kind, counts in _confusion_rows(scores).items()
    ]
    return ReportTable("Wanted (rows) and said (columns)", ["", *scores.classes, "recall"], rows)


def _confusion_rows(scores: AnswerScores) -> dict[str, list[int]]:
    """Return each kind that is wanted, with how often each of ``scores.classes`` was said for it."""
    classes, wanted = scores.classes, {pair[0] for pair in scores.confusion}
    return {kind: [scores.confusion.get((kind, said), 0) for said in classes] for kind in classes if kind in wanted}


def draw_confusion(scores: AnswerScores, file: Path) -> None:
    """Draw the confusion matrix, rows as shares of what is wanted, with the counts in it."""
    import matplotlib  # here: it takes a second to import

    matplotlib.use("agg")
    from matplotlib import pyplot

    classes, rows = scores.classes, _confusion_rows(scores)
    shares = [[count / sum(counts) for count in counts] for counts in rows.values()]
    side = max(4.0, 0.7 * len(classes) + 2)
    figure, axes = pyplot.subplots(figsize=(side, max(3.0, 0.6 * len(rows) + 2)), layout="constrained")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, numbers in enumerate(rows.values()):
        for column, count in enumerate(numbers):
            if count:
                colour = "white" if shares[row][column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(classes)), [_short(kind) for kind in classes], rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), [_short(kind) for kind in rows])
    axes.set(xlabel="said", ylabel="wanted")
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _short(text: str) -> str:
    return text if len(text) <= 24 else text[:23] + "…"


def write_answer_results(
    folder: Path,
    data: CaptionSet,
    predictions: Sequence[dict],
    scores: AnswerScores,
    match: Match,
    settings: dict,
) -> None:
    """Write predictions.json, scores.json, per_answer.jsonl, report.html, and confusion.png where there is a matrix.

    Args:
        folder: where to; made if need be.
        data: the set.
        predictions: ``{"image_id", "caption"}`` of each question.
        scores: of them.
        match: what of an answer was compared.
        settings: what produced them, for scores.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "predictions.json", list(predictions))
    write_json(folder / "ground_truth.json", data.ground_truth)
    origin = made_with()
    record = {
        **scores.corpus,
        "intervals": scores.intervals,
        "match": str(match),
        "num_answers": len(scores.right),
        "num_clusters": scores.num_clusters,
        "faults": scores.faults,
        "confusion": [[*pair, count] for pair, count in scores.confusion.items()],
        "notes": scores.notes,
        "settings": settings,
        **origin,
    }
    write_json(folder / "scores.json", record)
    questions, references = {question.id: question for question in data.questions}, data.references()
    cards = []
    with open(folder / "per_answer.jsonl", "wb") as stream:
        for prediction in predictions:
            key, text = prediction["image_id"], prediction["caption"]
            value = scores.values[key]
            line = {
                "id": key,
                **questions[key].media(),
                "question": questions[key].turns[-1].value,
                "answer": text,
                "references": references[key],
                "value": value.text,
                **({"fault": value.fault} if value.text is None else {}),
                "wanted": scores.wanted[key],
                "right": scores.right[key],
                **({"cluster": data.clusters[key]} if data.clusters else {}),
            }
            stream.write(encode_line(line))
            verdict = "right" if scores.right[key] else value.fault or f"wrong: {value.text} for {scores.wanted[key]}"
            cards.append(
                ReportRow(
                    images=questions[key].images,
                    video=questions[key].video,
                    image_id=key,
                    references=references[key],
                    predictions={"answer": text},
                    scores={"accuracy": float(scores.right[key])},
                    verdict=verdict,
                    question=questions[key].turns[-1].value,
                )
            )
    tables = [] if not scores.confusion else [confusion_table(scores)]
    if scores.faults:
        tables.append(ReportTable("Answers that say nothing", ["why", "answers"], list(scores.faults.items())))
    figures = []
    if scores.confusion:
        draw_confusion(scores, folder / "confusion.png")
        figures.append(("Confusion matrix; colours are shares of a row", folder / "confusion.png"))
    provenance = {**settings, "match": str(match), "commit": origin["commit"] or "not under git"}
    write_report(
        folder / "report.html",
        title=f"{data.name}: {settings['checkpoint']}",
        scores=scores.corpus,
        intervals=scores.intervals,
        notes=scores.notes,
        rows=cards,
        tables=tables,
        figures=figures,
        provenance={name.replace("_", " "): str(value) for name, value in provenance.items()},
    )


def print_answer_scores(scores: AnswerScores, title: str, noun: str) -> None:
    """Print the scores with their intervals, the confusion matrix where it fits, and why answers said nothing.

    Args:
        scores: of a set.
        title: of the table.
        noun: what the intervals draw: answers, or what ``--cluster`` names.
    """
    console = Console(highlight=False)
    table = Table(title=escape(title), caption=f"{len(scores.right)} answers, {scores.num_clusters} {noun}")
    table.add_column("score")
    for heading in ("value", "95 % interval"):
        table.add_column(heading, justify="right")
    for name, value in scores.corpus.items():
        bounds = scores.intervals.get(name)
        table.add_row(name, f"{value:.4f}", "{:.4f} – {:.4f}".format(*bounds) if bounds else "")
    console.print(table)
    if scores.confusion and len(scores.classes) <= SHOWN_CLASSES:
        shown = confusion_table(scores)
        matrix = Table(title=shown.title)
        for column in shown.columns:
            matrix.add_column(escape(column) if column != NOTHING else column, justify="right" if column else "left")
        for row in shown.rows:
            matrix.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else escape(str(cell)) for cell in row))
        console.print(matrix)
    for fault, count in scores.faults.items():
        console.print(f"{count} {'answer' if count == 1 else 'answers'}: {fault}", markup=False)
    for note in scores.notes:
        console.print(f"note: {note}", markup=False)


def print_answer_differences(differences: dict[str, Difference], names: tuple[str, str]) -> None:
    """Print second minus first, with its interval; ``names`` are those of the two models."""
    table = Table(title=escape(f"{names[1]} minus {names[0]}"))
    for heading in ("score", "difference", "95 % interval", "p"):
        table.add_column(heading, justify="left" if heading == "score" else "right")
    for name, found in differences.items():
        table.add_row(name, f"{found.value:+.4f}", f"{found.low:+.4f} – {found.high:+.4f}", f"{found.p_value:.3f}")
    Console(highlight=False).print(table)
