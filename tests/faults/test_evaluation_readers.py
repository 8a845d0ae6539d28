"""Predictions, references, results and caption sets, damaged; see test_readers.py."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import score_grounding
from hypothesis import strategies as st

from internvl.evaluation import compare, datasets, score
from internvl.evaluation.datasets import read_caption_set, read_custom_set, read_train_sets
from internvl.evaluation.questions import check_media
from internvl.evaluation.scorers import Scored
from tests.faults.corpus import (
    COCO,
    ENTRY,
    ROWS,
    damaged_json,
    damaged_lines,
    one_of_files,
)
from tests.faults.harness import fuzz


@pytest.fixture
def fast_scorers(monkeypatch):
    """Scores without Java: what is tried here is what reads, not what counts."""

    def run_scorers(references, hypotheses):
        values = [float(len(captions)) for captions in references.values()]
        return [Scored(("CIDEr",), [sum(values)], [values], np.zeros((len(values), 1)), np.sum)], []

    monkeypatch.setattr(score, "tokenize_sides", lambda references, hypotheses: (references, hypotheses))
    monkeypatch.setattr(score, "run_scorers", run_scorers)
    monkeypatch.setattr(score, "intervals", lambda results, **more: {})
    monkeypatch.setattr(compare, "paired_differences", lambda before, after, **more: {})


PREDICTIONS = [{"image_id": 1, "caption": "a cup"}, {"image_id": 2, "caption": "a film"}]


def test_scoring(sandbox, fast_scorers):
    def drive(case: tuple[str, bytes]):
        (sandbox.inputs / "predictions.json").write_text(json.dumps(PREDICTIONS))
        (sandbox.inputs / "truth.json").write_text(json.dumps(COCO))
        (sandbox.inputs / case[0]).write_bytes(case[1])
        return lambda: score.main(["predictions.json", "truth.json", "--json", str(sandbox.out / "scores.json")])

    files = {"predictions.json": damaged_json(PREDICTIONS), "truth.json": damaged_json(COCO)}
    fuzz("internvl.evaluation.score", one_of_files(files), drive, sandbox.out, weight=0.04)


def test_scoring_of_grounding(sandbox, repository):
    scenes = json.loads((repository / "data" / "habitat" / "scenes.json").read_text())
    few = {"val": dict(list(scenes["val"].items())[:2])}
    predictions = [{"image_id": int(image_id), "caption": "a red chair on the left"} for image_id in few["val"]]

    def drive(case: tuple[str, bytes]):
        (sandbox.inputs / "predictions.json").write_text(json.dumps(predictions))
        (sandbox.inputs / "scenes.json").write_text(json.dumps(few))
        (sandbox.inputs / case[0]).write_bytes(case[1])
        return lambda: score_grounding.main(["predictions.json", "scenes.json"])

    files = {"predictions.json": damaged_json(predictions), "scenes.json": damaged_json(few)}
    fuzz("tools/score_grounding.py", one_of_files(files), drive, sandbox.out, weight=0.02)


def test_comparing_results(sandbox, fast_scorers):
    lines = [
        {
            "image_id": row["image_id"],
            "image": "good.png",
            "caption": row["caption"],
            "references": ["a cup"],
            "CIDEr": 1.0,
        }
        for row in PREDICTIONS
    ]
    scores = {"CIDEr": 1.0, "settings": {"checkpoint": "model"}}
    files = {"per_image.jsonl": damaged_lines(*lines), "scores.json": damaged_json(scores)}

    def drive(case: tuple[str, bytes]):
        for name in ("one", "two"):
            folder = sandbox.inputs / name
            folder.mkdir(exist_ok=True)
            (folder / "per_image.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            (folder / "scores.json").write_text(json.dumps(scores))
        (sandbox.inputs / "two" / case[0]).write_bytes(case[1])
        return lambda: compare.main(["one", "two", "--out", str(sandbox.out / "comparison")])

    fuzz("internvl.evaluation.compare", one_of_files(files), drive, sandbox.out, weight=0.03)


def test_caption_sets(sandbox, monkeypatch):
    monkeypatch.setattr(datasets, "REGISTRY", sandbox.inputs / "registry.json")
    monkeypatch.setattr(datasets, "REPOSITORY", sandbox.inputs)
    images = [{"image": "good.png", "caption": ["a cup"]}, {"image": "film/1.png"}]
    truth = {**COCO, "images": [{"id": 1}, {"id": 2}]}
    contents = {
        "registry.json": {"set": {"root": ".", "annotation": "images.json", "ground_truth": "truth.json"}},
        "images.json": COCO,
        "truth.json": truth,
    }
    files = {name: damaged_json(content) for name, content in contents.items()}
    files["images.json"] = damaged_json(COCO, images)

    def read_set():
        data = read_caption_set("set")
        root = json.loads((sandbox.inputs / "registry.json").read_text())["set"]["root"]
        places = [os.path.realpath(path) for asked in data.questions for path in asked.images]
        assert all(Path(place).is_relative_to(os.path.realpath(root)) for place in places)
        check_media(data.questions)
        data.references()

    def drive(case: tuple[str, bytes]):
        for name, content in contents.items():
            (sandbox.inputs / name).write_text(json.dumps(content))
        (sandbox.inputs / case[0]).write_bytes(case[1])
        return read_set

    fuzz("caption set", one_of_files(files), drive, sandbox.out, weight=0.04)


def test_evaluation_of_rows(sandbox):
    (sandbox.inputs / "meta.json").write_text(json.dumps({"set": ENTRY}))

    def drive(case: tuple[bytes, bool]):
        (sandbox.inputs / "rows.jsonl").write_bytes(case[0])

        def read_set():
            (data,) = (
                read_train_sets(Path("meta.json")) if case[1] else [read_custom_set(Path("rows.jsonl"), Path("."))]
            )
            check_media(data.questions)

        return read_set

    fuzz("rows as a caption set", st.tuples(damaged_lines(*ROWS), st.booleans()), drive, sandbox.out, weight=0.04)
