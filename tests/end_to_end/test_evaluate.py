"""evaluate.sh for real: a base and an adapter, one and two processes, and what is missing."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import REPOSITORY
from tests.end_to_end.conftest import run_launcher

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


def test_a_killed_evaluation_goes_on_and_ends_with_the_same_predictions(trained_adapter, tmp_path):
    flags = ["--checkpoint", str(trained_adapter), "--datasets", "habitat", "--limit", "12", "--batch-size", "2"]
    command = [sys.executable, str(REPOSITORY / "eval" / "caption" / "evaluate_caption.py"), *flags]
    out = tmp_path / "parent" / "out"
    whole = subprocess.run([*command, "--out-dir", str(tmp_path / "whole")], cwd=REPOSITORY, capture_output=True)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen([*command, "--out-dir", str(out)], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(
        file.read_bytes().count(b"\n") >= 4 for file in out.parent.glob("unfinished-*/answers_0.jsonl")
    ):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not out.exists()
    again = subprocess.run([*command, "--out-dir", str(out)], cwd=REPOSITORY, capture_output=True, text=True)
    assert again.returncode == 0 and "Continuing: " in again.stdout, again.stderr
    assert (out / "predictions.json").read_bytes() == (tmp_path / "whole" / "predictions.json").read_bytes()
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "caption-habitat"], "nowhere: there is no such"),
        (["pretrained/InternVL2-Tiny", "caption-flickr30k"], "there is no such file|cannot be read"),
        (["pretrained/InternVL2-Tiny", "caption-habitat", "--max-num", "0"], "--max-num: is 0"),
        (["pretrained/InternVL2-Tiny", "caption-habitat", "--beams", "2"], "--beams"),
    ],
)
def test_what_is_missing_is_named_with_status_2(arguments, message):
    import re

    process = run_launcher("evaluate.sh", *arguments)
    assert process.returncode == 2
    assert re.search(message, process.stderr) and "Traceback" not in process.stderr
