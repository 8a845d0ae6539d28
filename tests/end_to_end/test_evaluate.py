"""evaluate.sh for real: a base and an adapter, one and two processes, and what is missing."""

import json
import random
import signal
import subprocess
import time

import pytest

from tests.conftest import REPOSITORY
from tests.end_to_end.launching import run_launcher

METRICS = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"]


def evaluate(checkpoint, folder, *flags, **settings):
    process = run_launcher(
        "evaluate.sh", str(checkpoint), "caption-habitat", "--out-dir", str(folder), *flags, **settings
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip().splitlines()[-1] == str(folder)
    return json.loads((folder / "predictions.json").read_text()), json.loads((folder / "scores.json").read_text())


def test_a_result_folder_is_complete_and_the_same_for_two_processes(trained_adapter, tmp_path):
    flags = ["--dynamic", "--limit", "7", "--batch-size", "3"]
    predictions, scores = evaluate(trained_adapter, tmp_path / "one", *flags)
    assert [entry["image_id"] for entry in predictions] == list(range(1, 8))
    assert list(scores)[:7] == METRICS and scores["num_images"] == 7
    assert scores["settings"]["checkpoint_sha256"] and scores["settings"]["max_new_tokens"] == 30
    assert len((tmp_path / "one" / "per_image.jsonl").read_text().splitlines()) == 7
    assert "<html" in (tmp_path / "one" / "report.html").read_text()
    again, _ = evaluate(trained_adapter, tmp_path / "two", *flags, GPUS="2")
    assert again == predictions


@pytest.mark.slow
def test_an_evaluation_killed_three_times_ends_with_the_same_predictions(trained_adapter, warm_python, tmp_path):
    flags = ["--checkpoint", str(trained_adapter), "--datasets", "habitat", "--limit", "24", "--batch-size", "2"]
    command = [str(warm_python), str(REPOSITORY / "eval" / "caption" / "evaluate_caption.py"), *flags]
    out = tmp_path / "parent" / "out"
    whole = subprocess.run([*command, "--out-dir", str(tmp_path / "whole")], cwd=REPOSITORY, capture_output=True)
    assert whole.returncode == 0, whole.stderr
    answered = 0
    for _ in range(3):
        process = subprocess.Popen([*command, "--out-dir", str(out)], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
        wanted = answered + random.randint(1, 6)
        while process.poll() is None and answered < wanted:
            files = out.parent.glob("unfinished-*/answers_0.jsonl")
            answered = sum(line.strip() != b"" for file in files for line in file.read_bytes().splitlines())
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL and not out.exists()
    again = subprocess.run([*command, "--out-dir", str(out)], cwd=REPOSITORY, capture_output=True, text=True)
    assert again.returncode == 0 and "Continuing: " in again.stdout, again.stderr
    assert (out / "predictions.json").read_bytes() == (tmp_path / "whole" / "predictions.json").read_bytes()
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.slow
def test_a_file_of_ones_own_is_scored_and_compared(trained_adapter, tiny_base, rows_folder, warm_python, tmp_path):
    def run(checkpoint, out, *flags):
        custom = [
            "--annotation",
            str(rows_folder / "train.jsonl"),
            "--root",
            str(rows_folder),
            "--max-new-tokens",
            "9",
        ]
        done = run_launcher(
            "evaluate.sh", str(checkpoint), "caption-custom", *custom, "--dynamic", "--out-dir", str(out), *flags
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(tiny_base, tmp_path / "base")
    printed = run(trained_adapter, tmp_path / "adapter", "--compare", str(tmp_path / "base"))
    assert "difference" in printed and printed.splitlines()[-1] == str(tmp_path / "adapter")
    lines = [json.loads(line) for line in (tmp_path / "adapter" / "per_image.jsonl").read_text().splitlines()]
    assert {len(line["references"]) for line in lines} == {1, 2}, "images that occur twice have two references"
    kinds = {type(line.get("image")) for line in lines}
    assert kinds == {str, list, type(None)}, "single images, several, and text"
    scores = json.loads((tmp_path / "adapter" / "scores.json").read_text())
    assert scores["settings"]["max_new_tokens"] == 9 and scores["settings"]["dataset"] == "custom"
    assert "commit" in scores and scores["intervals"]["CIDEr"][0] <= scores["CIDEr"] <= scores["intervals"]["CIDEr"][1]
    again = tmp_path / "again.json"
    names = [str(tmp_path / "adapter" / name) for name in ("predictions.json", "ground_truth.json")]
    done = subprocess.run(
        [warm_python, "-m", "internvl.evaluation.score", *names, "--allow-empty", "--json", str(again)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(again.read_text())[name] for name in METRICS] == [scores[name] for name in METRICS]
    assert (tmp_path / "adapter" / "comparison.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "caption-habitat"], "nowhere: there is no such"),
        (["pretrained/InternVL2-Tiny", "caption-flickr30k"], "there is no such file|cannot be read"),
        (["pretrained/InternVL2-Tiny", "caption-habitat", "--max-num", "0"], "--max-num: is 0"),
        (["pretrained/InternVL2-Tiny", "caption-kitchen"], "has no data set 'kitchen'. Use one of coco"),
        (["pretrained/InternVL2-Tiny", "caption-custom", "--annotation", "README.md"], "--root: goes with"),
        (["pretrained/InternVL2-Tiny", "caption-train", "--meta", "no.json"], "no.json: there is no such meta file"),
        (["pretrained/InternVL2-Tiny", "caption-habitat", "--compare", "data"], "data: is not a result folder"),
        (["pretrained/InternVL2-Tiny", "caption-habitat", "--beams", "2"], "--beams"),
        (
            ["pretrained/InternVL2-Tiny", "caption-habitat", "--out-dir", "README.md/mine/here"],
            r"README.md/mine: cannot be written to \(Not a directory\)\. Pass another folder as --out-dir",
        ),
    ],
)
def test_what_is_missing_is_named_with_status_2(arguments, message):
    import re

    process = run_launcher("evaluate.sh", *arguments)
    assert process.returncode == 2
    assert re.search(message, process.stderr) and "Traceback" not in process.stderr
