"""Golden values of the original code: the part kept here, and all of them where ``shared/`` has them."""

import json
import shutil
from pathlib import Path

import pytest

from tests.reference.__main__ import main
from tests.reference.runner import FAMILIES, Report, run_families

PART = Path(__file__).parent / "reference" / "data"
SHARED = Path(__file__).resolve().parents[2] / "shared"
# METEOR alone takes eight seconds a set.
SLOW = {"caption", "eval_caption"}


def check(family: str, folder: Path) -> None:
    report = Report()
    run_families(report, folder, [family], SHARED / "internvl2_2b")
    if not report.cases:
        pytest.skip(report.skipped[0])
    assert not report.failed, "\n".join(case.line() for case in report.failed)


def families(slow: set[str]) -> list:
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in FAMILIES]


@pytest.mark.parametrize("family", families(slow=set()))
def test_the_part_kept_here(family, real_meteor):
    check(family, PART)


@pytest.mark.parametrize("family", families(slow=SLOW))
def test_all_golden_values(family, shared, real_meteor):
    check(family, shared / "reference")


@pytest.mark.parametrize("family", ["tiny", "lora", "tokens"])
def test_golden_values_of_members_with_qwen(family, shared):
    check(family, shared / "reference_qwen2")


def test_a_missing_folder_ends_with_status_2(tmp_path, capsys):
    assert main([str(tmp_path / "nothing")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "nothing: there is no such folder" in message


def test_missing_families_are_skipped_and_a_wrong_value_fails(tmp_path, capsys):
    (tmp_path / "tiling").mkdir()
    grids = json.loads((PART / "tiling" / "grids.json").read_text(encoding="utf-8"))
    grids["rows"] = [*grids["rows"][:3], [*grids["rows"][3][:-1], 99]]
    (tmp_path / "tiling" / "grids.json").write_text(json.dumps(grids), encoding="utf-8")
    out = tmp_path / "report.json"
    assert main([str(tmp_path), "--json", str(out)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "3 passed, 1 failed"
    assert sum(line.startswith("skipped ") for line in lines) == len(FAMILIES) - 1
    record = json.loads(out.read_text(encoding="utf-8"))
    assert [case["status"] for case in record["cases"]] == ["ok", "ok", "ok", "FAILED"]


def test_names_sizes_and_numbers_come_from_the_files(tmp_path):
    for name in ("tiny", "lora"):
        shutil.copytree(PART / name, tmp_path / name)
    (tmp_path / "tiny" / "v2_last_ln").rename(tmp_path / "tiny" / "another")
    (tmp_path / "lora" / "llm_r8").rename(tmp_path / "lora" / "other_rank")
    (tmp_path / "tiny" / "another" / "bf16.json").unlink()
    file = tmp_path / "tiny" / "another" / "expected.json"
    expected = json.loads(file.read_text(encoding="utf-8"))
    expected["generate"] = dict(list(expected["generate"].items())[:1])
    file.write_text(json.dumps(expected), encoding="utf-8")
    report = Report()
    run_families(report, tmp_path, ["tiny", "lora"], tmp_path)
    assert report.cases and not report.failed
    assert {case.name.split("/")[0] for case in report.cases} == {"another", "other_rank"}
