"""The result folder of an evaluation, and the table printed at its end."""

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from internvl.evaluation.datasets import CaptionSet
from internvl.evaluation.report import ReportRow, write_report
from internvl.evaluation.score import CaptionScores
from internvl.json_files import write_json

RECORDED_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "pillow", "pycocoevalcap")


def write_results(
    folder: Path, data: CaptionSet, predictions: list[dict], scores: CaptionScores, settings: dict
) -> None:
    """Write predictions.json, scores.json, per_image.jsonl and report.html.

    ``predictions`` are in COCO results format; ``settings`` say what produced them and go into scores.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "predictions.json", predictions)
    versions = {package: version(package) for package in RECORDED_PACKAGES}
    record = {
        **scores.corpus,
        "num_images": scores.num_images,
        "notes": scores.notes,
        "settings": settings,
        "versions": versions,
    }
    write_json(folder / "scores.json", record)
    references: dict[int, list[str]] = {}
    for annotation in data.ground_truth["annotations"]:
        references.setdefault(annotation["image_id"], []).append(annotation["caption"])
    paths = dict(data.images)
    with open(folder / "per_image.jsonl", "w", encoding="utf-8") as stream:
        for prediction in predictions:
            image_id = prediction["image_id"]
            line = {
                "image_id": image_id,
                "image": str(paths[image_id]),
                "caption": prediction["caption"],
                "references": references[image_id],
                **scores.per_image[image_id],
            }
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    write_report(
        folder / "report.html",
        title=f"{data.name}: {settings['checkpoint']}",
        scores=asdict(scores),
        rows=[
            ReportRow(
                image_path=paths[prediction["image_id"]],
                image_id=prediction["image_id"],
                references=references[prediction["image_id"]],
                predictions={"caption": prediction["caption"]},
                scores=scores.per_image[prediction["image_id"]],
            )
            for prediction in predictions
        ],
        facts={name.replace("_", " "): str(value) for name, value in {**settings, **versions}.items()},
    )


def print_scores(name: str, scores: CaptionScores) -> None:
    """Print a data set's corpus scores as a table."""
    table = Table(title=f"{name}, {scores.num_images} pictures")
    for column in scores.corpus:
        table.add_column(column, justify="right")
    table.add_row(*(f"{value:.4f}" for value in scores.corpus.values()))
    console = Console()
    console.print(table)
    for note in scores.notes:
        console.print(note)
