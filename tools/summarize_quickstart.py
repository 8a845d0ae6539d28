"""Compare base, adapter and merged model after a quickstart: a table, summary.json and report.html.

    python tools/summarize_quickstart.py log/quickstart install=120 finetune=240

Called by ``shell/quickstart.sh`` with the seconds of each stage. Beside the caption scores it reports the F1 of the
(colour, piece, side) statements in the captions, once against each image's own scene and once against another's: a
model that looks is good at the first and bad at the second.
"""

import argparse
import json
import random
import sys
from pathlib import Path

from habitat.grounding import grounding_f1, swapped_f1
from rich.console import Console
from rich.table import Table

from internvl.errors import UserError, ends_on_user_error
from internvl.evaluation.datasets import read_caption_set
from internvl.evaluation.report import ReportRow, ReportTable, write_report
from internvl.evaluation.score import score_captions

REPOSITORY = Path(__file__).resolve().parents[1]
HABITAT = REPOSITORY / "data" / "habitat"
RUNS = {"base": "base", "adapter": "adapter_captions", "merged": "merged"}


def random_captions(image_ids: list[int], seed: int = 0) -> list[dict]:
    """Answer each image with a caption drawn from the train set: what knowing the style alone is worth."""
    captions = [
        json.loads(line)["conversations"][1]["value"]
        for line in (HABITAT / "train.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    draw = random.Random(seed)
    return [{"image_id": image_id, "caption": draw.choice(captions)} for image_id in image_ids]


def by_id(predictions: list[dict]) -> dict[int, str]:
    return {entry["image_id"]: entry["caption"] for entry in predictions}


def read_stages(pairs: list[str]) -> dict[str, float]:
    """Parse ``name=seconds`` words."""
    try:
        return {name: float(seconds) for name, seconds in (pair.split("=") for pair in pairs)}
    except ValueError as err:
        raise UserError(f"command line: {pairs} are not all name=seconds. Write for example finetune=240.") from err


def summarize(folder: Path, stages: dict[str, float]) -> dict:
    """Return what summary.json holds."""
    data = read_caption_set("habitat")
    scenes = json.loads((HABITAT / "scenes.json").read_text(encoding="utf-8"))["val"]
    scenes = {int(image_id): pieces for image_id, pieces in scenes.items()}
    predictions = {name: json.loads((folder / run / "predictions.json").read_text()) for name, run in RUNS.items()}
    predictions["random_caption"] = random_captions([question.id for question in data.questions])
    summary: dict = {}
    for name, entries in predictions.items():
        captions = by_id(entries)
        summary[name] = {
            **score_captions(entries, data.ground_truth, allow_empty=True).corpus,
            "grounding_f1": grounding_f1(captions, scenes)["f1"],
            "grounding_f1_swapped": swapped_f1(captions, scenes, 0)["f1"],
        }
    automodel = by_id(json.loads((folder / "automodel.json").read_text(encoding="utf-8")))
    summary["captions_identical"] = by_id(predictions["adapter"]) == by_id(predictions["merged"]) == automodel
    summary["seconds"] = stages
    return summary


def score_table(summary: dict) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows: one row a metric, one column a model."""
    models = ["random_caption", *RUNS]
    rows = [[metric, *(f"{summary[model][metric]:.3f}" for model in models)] for metric in summary["base"]]
    return ["metric", *(model.replace("_", " ") for model in models)], rows


def print_summary(summary: dict, folder: Path) -> None:
    """Print the table, the times and three captions."""
    columns, rows = score_table(summary)
    table = Table(title="habitat, 100 val images")
    for column in columns:
        table.add_column(column, justify="left" if column == "metric" else "right")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print("Seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in summary["seconds"].items()))
    same = "identical" if summary["captions_identical"] else "NOT identical"
    console.print(f"Captions of adapter, merged model and AutoModel on all images: {same}.")
    automodel = json.loads((folder / "automodel.json").read_text(encoding="utf-8"))
    for entry in automodel[:3]:
        console.print(f"  {entry['image_id']}: {entry['caption']}")


def write_page(summary: dict, folder: Path) -> None:
    """Write report.html: captions before and after beside each image, the table and the loss curve."""
    data = read_caption_set("habitat")
    references = data.references()
    before = by_id(json.loads((folder / RUNS["base"] / "predictions.json").read_text()))
    lines = (folder / RUNS["adapter"] / "per_image.jsonl").read_text(encoding="utf-8").splitlines()
    after = {line["image_id"]: line for line in map(json.loads, lines)}
    columns, rows = score_table(summary)
    metrics = [name for name in summary["adapter"] if not name.startswith("grounding")]
    write_report(
        folder / "report.html",
        title="Quickstart: a tiny InternVL2 before and after LoRA",
        scores={name: summary["adapter"][name] for name in metrics},
        rows=[
            ReportRow(
                images=question.images,
                image_id=question.id,
                references=references[question.id],
                predictions={"before": before[question.id], "after": after[question.id]["caption"]},
                scores={name: after[question.id][name] for name in metrics},
            )
            for question in data.questions
        ],
        provenance={
            "captions of adapter, merged model and AutoModel": (
                "identical" if summary["captions_identical"] else "not identical"
            ),
            **{f"seconds, {name}": f"{value:.0f}" for name, value in summary["seconds"].items()},
        },
        tables=[ReportTable("Base, adapter, merged", columns, rows)],
        figures=[("Loss of the finetune", folder / "adapter" / "loss.png")],
    )


@ends_on_user_error
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the quickstart wrote its parts")
    parser.add_argument("stages", nargs="*", metavar="NAME=SECONDS", help="how long each stage took")
    args = parser.parse_args(argv)
    summary = summarize(args.folder, read_stages(args.stages))
    (args.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print_summary(summary, args.folder)
    write_page(summary, args.folder)
    print(f"{args.folder / 'summary.json'}\n{args.folder / 'report.html'}")
    # Other captions after merging would mean the merged model is another model.
    return 0 if summary["captions_identical"] else 1


if __name__ == "__main__":
    sys.exit(main())
