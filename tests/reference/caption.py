"""Captions scored: tokenised text, corpus scores and the scores of each image."""

from pathlib import Path

import torch

from internvl.evaluation.java_scorers import ptb_tokenize
from internvl.evaluation.score import score_captions
from tests.reference.golden import read_json
from tests.reference.runner import Report

SCORE = 1e-6


def run(report: Report, folder: Path) -> None:
    """Check every set of ``caption/``, smallest first."""
    for path in sorted((folder / "caption").glob("*.json"), key=lambda path: path.stat().st_size):
        golden = read_json(path)
        with report.guard(f"{path.stem}/text"):
            check_text(report, path.stem, golden)
        with report.guard(f"{path.stem}/scores"):
            check_scores(report, path.stem, golden)


def check_text(report: Report, name: str, golden: dict) -> None:
    raw = [caption for captions in golden["references"] for caption in captions] + golden["hypotheses"]
    want = [caption for captions in golden["ptb_references"] for caption in captions] + golden["ptb_hypotheses"]
    report.equal(f"{name}/tokenised text", ptb_tokenize(raw), want)


def check_scores(report: Report, name: str, golden: dict) -> None:
    ids = golden["image_ids"]
    predictions = [{"image_id": i, "caption": text} for i, text in zip(ids, golden["hypotheses"], strict=True)]
    annotations = [
        {"image_id": i, "caption": text}
        for i, captions in zip(ids, golden["references"], strict=True)
        for text in captions
    ]
    truth = {"images": [{"id": i} for i in ids], "annotations": annotations}
    scores = score_captions(predictions, truth, allow_empty=True)
    for metric, value in golden["corpus"].items():
        report.within(f"{name}/{metric}", abs(scores.corpus[metric] - value), SCORE)
    for metric, values in golden["per_image"].items():
        got = torch.tensor([scores.per_image[i][metric] for i in ids], dtype=torch.float64)
        report.close(f"{name}/{metric} per image", got, torch.tensor(values, dtype=torch.float64), SCORE)
