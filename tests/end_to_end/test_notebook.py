"""The notebook: its cells run in order in a user's copy, and what it shows is what they print."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.end_to_end.test_readme import copy_repository

NOTEBOOK = json.loads((REPOSITORY / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
LONG, SHORT = "--max_steps 60", "--max_steps 3"


def shown(cell) -> str:
    """What a cell of the stored notebook printed."""
    return "".join(line for output in cell["outputs"] for line in output.get("text", []))


def test_the_stored_notebook_is_whole():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert any("image/png" in output.get("data", {}) for cell in CODE for output in cell["outputs"])
    # The adapter and what AutoModel makes of the merged folder say the same.
    captions = [shown(cell).strip() for cell in CODE if "print(caption(" in "".join(cell["source"])]
    chat = next(cell for cell in CODE if "merged.chat(" in "".join(cell["source"]))
    assert shown(chat).strip() == captions[-1] != captions[0]


@pytest.mark.slow
def test_the_cells_run_in_order(tmp_path):
    folder = copy_repository(tmp_path / "repository")
    marker = "---- cell"
    script = ["import matplotlib", 'matplotlib.use("Agg")']
    for cell in CODE:
        script += [f"print({marker!r})", "".join(cell["source"]).replace(LONG, SHORT)]
    (tmp_path / "cells.py").write_text("\n".join(script), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, tmp_path / "cells.py"],
        cwd=folder / "docs",  # where an editor starts it
        env=os.environ | {"INTERNVL_SKIP_INSTALL": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed = [text.strip() for text in done.stdout.split(marker)[1:]]
    assert LONG in "".join("".join(cell["source"]) for cell in CODE) and len(printed) == len(CODE)
    assert printed[1] == shown(CODE[1]).strip()  # the shipped model's caption
    assert printed[2] == shown(CODE[2]).strip()  # and the first training row
    assert printed[-1] == printed[5]  # merged and adapter
