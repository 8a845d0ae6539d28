"""The result folder of an evaluation: written, and read again for comparing."""

import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter

from internvl.data.annotation import parse_line
from internvl.data.problems import RowError
from internvl.errors import UserError, printable
from internvl.evaluation.datasets import REPOSITORY, CaptionSet
from internvl.evaluation.report import ReportRow, ReportTable, write_report
from internvl.evaluation.score import CaptionScores, CheckedId, wording_record
from internvl.evaluation.scorers import ImageId
from internvl.evaluation.wording import wording_rows
from internvl.json_files import encode_line, read_object, write_json
from internvl.schema import validate

RECORDED_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "pillow", "pycocoevalcap")


def repository_commit() -> str | None:
    """Return the commit of this repository, with "+changes" if files differ from it; None without git."""
    git = ["git", "-C", str(REPOSITORY)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")


def made_with() -> dict[str, Any]:
    """Return the commit and the versions of packages that a result is made with."""
    return {
        "commit": repository_commit(),
        "versions": {package: version(package) for package in RECORDED_PACKAGES},
    }


def write_results(
    folder: Path, data: CaptionSet, predictions: list[dict], scores: CaptionScores, settings: dict
) -> None:
    """Write predictions.json, scores.json, per_image.jsonl and report.html; ground_truth.json if it is not a file yet.

    Args:
        folder: where to; made if need be.
        data: the set.
        predictions: in COCO results format.
        scores: of them.
        settings: what produced them, for scores.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "predictions.json", predictions)
    if data.ground_truth_file is None:
        write_json(folder / "ground_truth.json", data.ground_truth)
    origin = made_with()
    record = {
        **scores.corpus,
        "intervals": scores.intervals,
        "num_images": scores.num_images,
        "images_with_empty_caption": len(scores.images_with_empty_caption),
        **wording_record(scores),
        "notes": scores.notes,
        "settings": settings,
        **origin,
    }
    write_json(folder / "scores.json", record)
    references = data.references()
    questions = {question.id: question for question in data.questions}
    with open(folder / "per_image.jsonl", "wb") as stream:
        for prediction in predictions:
            image_id = prediction["image_id"]
            line = {
                "image_id": image_id,
                **questions[image_id].media(),
                "question": questions[image_id].turns[-1].value,
                "caption": prediction["caption"],
                "references": references[image_id],
                **scores.per_image[image_id],
            }
            stream.write(encode_line(line))
    provenance = {**settings, "commit": origin["commit"] or "not under git", **origin["versions"]}
    write_report(
        folder / "report.html",
        title=f"{data.name}: {settings['checkpoint']}",
        scores=scores.corpus,
        intervals=scores.intervals,
        notes=scores.notes,
        tables=[
            ReportTable(
                "Wording",
                ("", "captions", "references, the first of each"),
                wording_rows(scores.wording, scores.reference_wording),
            )
        ],
        rows=[
            ReportRow(
                images=questions[prediction["image_id"]].images,
                video=questions[prediction["image_id"]].video,
                image_id=prediction["image_id"],
                references=references[prediction["image_id"]],
                predictions={"caption": prediction["caption"]},
                scores=scores.per_image[prediction["image_id"]],
            )
            for prediction in predictions
        ],
        provenance={name.replace("_", " "): str(value) for name, value in provenance.items()},
    )


class ResultLine(BaseModel):
    """What is read again of a line of per_image.jsonl."""

    image_id: CheckedId
    image: str | list[str] = []
    video: str = ""
    caption: str
    references: Annotated[list[str], Field(fail_fast=True)]

    @property
    def images(self) -> tuple[Path, ...]:
        """The files of the images; a single one stands alone in the line."""
        return tuple(Path(file) for file in ([self.image] if isinstance(self.image, str) else self.image))


class ScoresFile(BaseModel):
    """What is read again of scores.json."""

    settings: dict[str, Any] = {}


LINE, SCORES_FILE = TypeAdapter(ResultLine), TypeAdapter(ScoresFile)
AGAIN = "Run the evaluation again."


@dataclass(frozen=True)
class Result:
    """What a result folder holds: settings of the evaluation, and the lines of per_image.jsonl by image id."""

    folder: Path
    settings: dict[str, Any]
    lines: dict[ImageId, ResultLine]

    @property
    def name(self) -> str:
        return printable(str(self.settings.get("checkpoint", self.folder)))

    def predictions(self) -> list[dict]:
        """Return the captions in COCO results format."""
        return [{"image_id": image_id, "caption": line.caption} for image_id, line in self.lines.items()]

    def ground_truth(self) -> dict:
        """Return the references in COCO captions format."""
        annotations = [
            {"image_id": image_id, "caption": caption}
            for image_id, line in self.lines.items()
            for caption in line.references
        ]
        return {"images": [{"id": image_id} for image_id in self.lines], "annotations": annotations}


def read_result(folder: str | Path) -> Result:
    """Read a result folder.

    Raises:
        UserError: it is none, or a file of it is damaged.
    """
    folder = Path(folder)
    lines_file = folder / "per_image.jsonl"
    if not lines_file.is_file() or not (folder / "scores.json").is_file():
        raise UserError(
            f"{folder}: is not a result folder (no scores.json, no per_image.jsonl). Give one that evaluate.sh "
            "printed."
        )
    scores_file = folder / "scores.json"
    settings = validate(SCORES_FILE, read_object(scores_file), scores_file, todo=AGAIN).settings
    lines = {}
    for number, text in enumerate(lines_file.read_bytes().splitlines(), 1):
        where = f"{lines_file}:{number}"
        try:
            content = parse_line(text, where)
        except RowError as err:
            raise UserError(f"{where}: is damaged ({err.reason}). {AGAIN}") from err
        line = validate(LINE, content, lines_file, str(number), todo=AGAIN)
        lines[line.image_id] = line
    return Result(folder, settings, lines)
