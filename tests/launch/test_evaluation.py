"""An evaluation as evaluate.sh starts it."""

import pytest

from internvl.errors import UserError
from internvl.launch import evaluation

CALL = ["evaluate.py", "--datasets", "habitat"]


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path):
    for name in ("GPUS", "MASTER_PORT", "DRY_RUN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("INVOKED_FROM", str(tmp_path))
    (tmp_path / "merged").mkdir()


def test_paths_and_flags(tmp_path):
    typed = ["merged", "--limit", "3", "--annotation=merged", "--root", "data", "--out_dir", "out", "--auto"]
    asked = evaluation.read(CALL, typed)
    assert (asked.checkpoint, asked.script, asked.gpus) == (f"{tmp_path}/merged", "evaluate.py", 1)
    assert asked.arguments == [
        *("--datasets", "habitat", "--annotation", f"{tmp_path}/merged", "--root", "data"),
        *("--out-dir", f"{tmp_path}/out", "--auto", "--limit", "3"),
    ]


@pytest.mark.parametrize(
    ("typed", "gpus", "message"),
    [
        (["nowhere"], "1", "nowhere: there is no such folder"),
        (["merged"], "0", "GPUS: expected a whole number of 1 or more, found '0'"),
        (["merged", "--meta"], "1", "--meta: has no value"),
    ],
)
def test_refusals(monkeypatch, typed, gpus, message):
    monkeypatch.setenv("GPUS", gpus)
    with pytest.raises(UserError, match=message):
        evaluation.read(CALL, typed)


def test_auto_is_one_process(monkeypatch, capsys):
    monkeypatch.setenv("GPUS", "2")
    monkeypatch.setenv("DRY_RUN", "1")
    assert evaluation.start(evaluation.read(CALL, ["merged", "--auto", "True"])) == 0
    output, errors = capsys.readouterr()
    assert errors == "GPUS=2 is not used: --auto runs one process.\n" and "torchrun" not in output
    assert "--auto" not in evaluation.read(CALL, ["merged", "--auto", "False"]).arguments
