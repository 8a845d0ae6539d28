"""evaluate.sh MODEL answers-…: scores, files, the page, comparing, clusters, refusals."""

import json
import shutil

import pytest

from tests.end_to_end.launching import run_launcher

SHOWN = ("accuracy", "95 % interval", "groups by scene", "To see a difference of 0.1 in accuracy")


@pytest.fixture
def questions(rows_folder, tmp_path):
    """Twelve questions about six images of three scenes, answered in JSON; the last two ask for numbers in words."""
    for number in range(6):
        folder = tmp_path / f"scene{number % 3}"
        folder.mkdir(exist_ok=True)
        shutil.copyfile(rows_folder / "images" / f"image_{number:06d}.png", folder / f"{number}.png")
    with open(tmp_path / "rows.jsonl", "w") as stream:
        for number in range(12):
            action = ["go", "left", "right"][number % 3]
            turns = [
                {"from": "human", "value": f"<image>\nStep {number}: what now?"},
                {"from": "gpt", "value": json.dumps({"action": action})},
            ]
            image = f"scene{number % 3}/{number % 6}.png"
            row = {"image": image, "scene": f"s{number % 3}", "conversations": turns}
            stream.write(json.dumps(row) + "\n")
    return tmp_path / "rows.jsonl"


def evaluate(tiny_base, questions, *flags, status=0):
    given = ["answers-custom", "--annotation", questions, "--root", questions.parent, "--max-new-tokens", "6", *flags]
    process = run_launcher("evaluate.sh", str(tiny_base), *map(str, given))
    assert process.returncode == status, process.stderr[-3000:]
    return process


def test_answers_are_scored_by_cluster_compared_and_shown(tiny_base, questions, tmp_path):
    out = tmp_path / "out"
    flags = ["--match", "json:action", "--cluster", "scene", "--power", "0.1"]
    said = evaluate(tiny_base, questions, *flags, "--out-dir", out).stdout
    assert all(words in said for words in SHOWN), said
    scores = json.loads((out / "scores.json").read_text())
    assert scores["accuracy"] == 0 and scores["valid"] == 0 and scores["num_clusters"] == 3
    assert sum(scores["faults"].values()) == 12 and scores["episode_success"] == 0
    lines = [json.loads(line) for line in (out / "per_answer.jsonl").read_text().splitlines()]
    assert len(lines) == 12 and {line["cluster"] for line in lines} == {"s0", "s1", "s2"}
    assert all(line["right"] is False and line["fault"] for line in lines)
    page = (out / "report.html").read_text()
    assert "Answers that say nothing" in page and 'id="verdict"' in page and page.count("<article") == 12
    assert (out / "confusion.png").stat().st_size > 1000
    again = evaluate(
        tiny_base,
        questions,
        "--match",
        "regex:.",
        "--cluster",
        "path:0",
        "--compare",
        out,
        "--out-dir",
        tmp_path / "b",
    )
    assert "minus" in again.stdout and "+0.0000" in again.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--match", "json"], "--match: is 'json'. Give exact, choice, number, json:FIELD or regex:PATTERN."),
        (["--match", "choice"], "begins with no letter of a choice. Give answers that --match choice can compare"),
        (["--match", "exact", "--cluster", "episode"], "has no 'episode', which rows are grouped by"),
        (["--match", "exact", "--power", "2"], "--power: is 2.0. Give a difference between 0 and 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(flags, words, tiny_base, questions):
    assert words in evaluate(tiny_base, questions, *flags, "--limit", "1", status=2).stderr
