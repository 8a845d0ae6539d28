"""tools/gpu_acceptance.py: a line a check as it ends, limits that hold, and every check rehearsed on the CPU."""

import json
import subprocess
import sys
import time
from pathlib import Path

import gpu_acceptance
import pytest
import torch
from acceptance import stages
from acceptance.checks import CHECKS, STAGES, Check, Figures, Setting, largest_difference, require
from acceptance.golden import WAYS, read_golden


def run(repository: Path, tmp_path: Path, *arguments: str, status: int = 0) -> list[dict]:
    command = [sys.executable, "tools/gpu_acceptance.py", *arguments, "--out", str(tmp_path)]
    process = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert process.returncode == status, process.stdout[-2000:] + process.stderr[-2000:]
    file = tmp_path / "acceptance.json"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else [process.stderr]


@pytest.mark.slow
def test_a_check_writes_its_line_and_its_figures(repository, tmp_path):
    [machine] = run(repository, tmp_path, "right", "--rehearse", "--only", "machine")
    assert (machine["stage"], machine["name"], machine["ok"]) == ("right", "machine", True)
    assert machine["numbers"]["torch"] and machine["numbers"]["cores"] >= 1


def test_without_a_gpu_and_with_unknown_checks_it_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for flags, words in (
        (["--only", "speed"], "right has no check 'speed'. Use some of machine, attention_kernels"),
        ([], "There is no GPU here. Run it on a machine with one, or pass --rehearse."),
    ):
        with pytest.raises(SystemExit, match="2"):
            gpu_acceptance.main(["right", "--out", str(tmp_path), *flags])
        assert words in capsys.readouterr().err


def fails(setting: Setting, figures: Figures) -> None:
    """Fails."""
    figures["before"] = 1
    require(False, "it is wrong")


PROGRAM = """
import sys, time
sys.path[:0] = [{tools!r}, {tests!r}]
from pathlib import Path
from acceptance import checks, stages
def fails(setting, figures):
    figures["before"] = 1
    checks.require(False, "it is wrong")
def skips(setting, figures):
    checks.needs_package("no_such_package")
def breaks(setting, figures):
    raise KeyError("odd")
def hangs(setting, figures):
    figures["before"] = 2
    time.sleep(60)
for run in (fails, skips, breaks, hangs):
    checks.check("right", 60)(run)
arguments = dict(zip(sys.argv[2::2], sys.argv[3::2]))
setting = checks.Setting(Path(arguments["--work"]), True)
sys.exit(stages.run_check(arguments["--check"], setting, Path(arguments["--figures"])))
"""


def test_a_check_that_fails_skips_breaks_or_hangs_has_its_line_and_ends_no_other(repository, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(tools=str(repository / "tools"), tests=str(repository)))
    made = [
        Check(name, "right", 30 if name != "hangs" else 6, fails) for name in ("fails", "skips", "breaks", "hangs")
    ]
    started = time.monotonic()
    command = [sys.executable, str(script)]
    results = {r["name"]: r for r in stages.run_stage(made, Setting(tmp_path, True), tmp_path / "out", command)}
    assert time.monotonic() - started < 100
    assert results["fails"]["ok"] is False and results["fails"]["reason"] == "it is wrong"
    assert results["fails"]["numbers"] == {"before": 1}
    assert results["skips"]["ok"] is None and results["skips"]["reason"] == "no_such_package is not installed"
    assert results["breaks"]["ok"] is False and results["breaks"]["reason"] == "KeyError: 'odd'"
    assert results["hangs"]["ok"] is False and "took more than 6 s" in results["hangs"]["reason"]
    assert results["hangs"]["numbers"] == {"before": 2}
    lines = (tmp_path / "out" / "acceptance.json").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == [check.name for check in made]


def test_checks_of_a_stage_have_their_time_and_say_what_they_check():
    for stage in STAGES:
        own = [check for check in CHECKS.values() if check.stage == stage]
        assert own and all(check.seconds <= 300 and check.run.__doc__ for check in own)


def test_the_golden_numbers_are_of_every_way():
    golden = read_golden()
    assert golden["training"].keys() == WAYS.keys() and all(len(v["loss"]) == 10 for v in golden["training"].values())
    assert largest_difference(golden["training"]["packed"]["loss"], golden["training"]["plain"]["loss"]) < 1e-5
    assert {beams: len(texts) for beams, texts in golden["answers"].items()} == {"1": 8, "3": 8}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_every_check_is_rehearsed(stage, repository, tmp_path):
    results = run(repository, tmp_path, stage, "--rehearse")
    assert [result["name"] for result in results] == [check.name for check in CHECKS.values() if check.stage == stage]
    assert all(result["ok"] is not False for result in results), results
