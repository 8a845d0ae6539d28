"""Preferences as commands: pairs of a model's own answers, and a training on them that continues to the same bits."""

import json
from pathlib import Path

import pytest

from internvl.commands.make_preferences import main as make_preferences
from tests.faults.test_kills import digest

FLAGS = (
    "--objective", "mpo", "--beta", "0.5", "--lora_dropout", "0.0", "--share_image_prefix", "False",
    "--packing", "False", "--max_steps", "3", "--save_steps", "1", "--learning_rate", "1e-2",
)  # fmt: skip
SCORE = """
def letters(answers, references, ended):
    return [sum(map(str.isalpha, answer)) for answer in answers]
"""


@pytest.fixture
def pairs(tiny_base, rows_folder, tmp_path, monkeypatch, capsys):
    """``pairs(name, flag, …)`` makes pairs in a folder; what the most letters says is worth most."""

    def make(name, *flags):
        (tmp_path / "score.py").write_text(SCORE)
        monkeypatch.chdir(tmp_path)
        make_preferences(
            [
                str(tiny_base), str(rows_folder / "meta.json"), "--out", str(tmp_path / name), "--num-samples", "4",
                "--score", f"{tmp_path}/score.py:letters", "--max-new-tokens", "60", "--temperature", "0.5", *flags,
            ]
        )  # fmt: skip
        return tmp_path / name, capsys.readouterr().out

    return make


def rows_of(folder):
    (entry,) = json.loads((folder / "meta.json").read_text()).values()
    return [json.loads(line) for line in Path(entry["annotation"]).read_text().splitlines()], entry


@pytest.fixture
def written_pairs(rows_folder, tmp_path):
    """A meta file whose rows have rejected answers, written by hand."""
    (entry,) = json.loads((rows_folder / "meta.json").read_text()).values()
    rows = [json.loads(line) for line in Path(entry["annotation"]).read_text().splitlines()]
    for number, row in enumerate(rows):
        row["rejected"] = "Nothing " + "at all " * (number % 3)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    meta = tmp_path / "pairs.json"
    meta.write_text(json.dumps({"pairs": {**entry, "annotation": str(tmp_path / "pairs.jsonl")}}))
    return meta


def test_a_killed_training_on_pairs_continues_to_the_same_bits(train, written_pairs, tmp_path):
    def run(name, fault=None):
        flags = (*FLAGS, "--meta_path", str(written_pairs))
        return train(tmp_path / name, 1, fault, flags, command="reward"), tmp_path / name

    status, whole = run("whole")
    assert status == 0, (tmp_path / "log.txt").read_text()[-3000:]
    assert run("killed", {"batch": 4})[0] == -9
    status, killed = run("killed")
    assert status == 0 and "Continuing from" in (tmp_path / "log.txt").read_text()
    assert digest(killed) == digest(whole)
    history = json.loads((whole / "trainer_state.json").read_text())["log_history"]
    entries = [entry for entry in history if "reward_margin" in entry]
    assert entries[0]["reward_margin"] == pytest.approx(0, abs=1e-4)  # the policy is the start's then
    assert entries[-1]["reward_margin"] > 0.01 and entries[-1]["loss"] < entries[0]["loss"]
    assert "not used" not in (tmp_path / "log.txt").read_text().lower()


@pytest.mark.slow
def test_two_processes_train_on_pairs_as_one_does(train, written_pairs, tmp_path):
    entries = []
    for name, processes in (("one", 1), ("two", 2)):
        flags = (*FLAGS, "--meta_path", str(written_pairs))
        assert train(tmp_path / name, processes, None, flags, command="reward") == 0
        history = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        entries.append([entry for entry in history if "reward_margin" in entry])
    for alone, together in zip(*entries, strict=True):
        for key in ("loss", "reward_margin", "reward_chosen", "grad_norm"):
            assert together[key] == pytest.approx(alone[key], rel=1e-4, abs=2e-4), key


def test_rows_without_rejected_answers_end_the_training(train, tmp_path):
    assert train(tmp_path / "out", 1, None, FLAGS, command="reward") == 2
    assert ":1: has no answer in the key 'rejected'" in (tmp_path / "log.txt").read_text()


def test_pairs_are_the_best_and_the_worst_of_the_answers(pairs):
    folder, output = pairs("pairs")
    rows, entry = rows_of(folder)
    assert entry["length"] == len(rows) > 1 and f"{len(rows)} pairs of" in output
    for row in rows:
        chosen, rejected = row["conversations"][-1]["value"], row["rejected"]
        assert row["scores"] == [sum(map(str.isalpha, text)) for text in (chosen, rejected)]
        assert row["scores"][0] > row["scores"][1]
    again, _ = pairs("again", "--batch-size", "3")  # what is drawn does not depend on who shares a batch
    assert rows_of(again)[0] == rows


def test_pairs_must_be_apart_as_far_as_asked(pairs, capsys):
    rows, _ = rows_of(pairs("pairs")[0])
    gaps = sorted(row["scores"][0] - row["scores"][1] for row in rows)
    wide, _ = rows_of(pairs("wide", "--min-gap", str(gaps[-1]))[0])
    assert [row["scores"][0] - row["scores"][1] for row in wide] == [gaps[-1]] * len(wide) and len(wide) < len(rows)
    with pytest.raises(SystemExit):
        pairs("none", "--min-gap", "1e9")
    assert "no question has answers that are worth more and less. Raise --num-samples" in capsys.readouterr().err


def test_what_was_stopped_goes_on(pairs, tmp_path, monkeypatch):
    whole, _ = pairs("whole")
    calls = []

    def fail_at_the_second(*args, **kw):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample_answers(*args, **kw)

    from internvl.commands.make_preferences import sample_answers

    with monkeypatch.context() as patch:
        patch.setattr("internvl.commands.make_preferences.sample_answers", fail_at_the_second)
        with pytest.raises(SystemExit):
            pairs("cut", "--batch-size", "2")
    assert not (tmp_path / "cut").exists()
    folder, _ = pairs("cut", "--batch-size", "2")
    assert rows_of(folder)[0] == rows_of(whole)[0]
    assert not list(tmp_path.glob("unfinished-*"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--num-samples", "1"), "--num-samples: is 1. Give 2 or more"),
        (("--temperature", "0"), "--temperature: is 0"),
        (("--min-gap", "-1"), "--min-gap: is -1"),
        (("--score", "BLEU"), "'BLEU' is not a reward"),
        (("--no_such_flag", "1"), "no_such_flag"),
    ],
)
def test_flags_that_cannot_be_are_refused(pairs, capsys, flags, words):
    with pytest.raises(SystemExit):
        pairs("out", *flags)
    assert words in capsys.readouterr().err
