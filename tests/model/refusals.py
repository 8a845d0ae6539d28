"""What is common to tests of adapters that are refused."""

from pathlib import Path

import pytest

from internvl.commands.merge_lora import main as merge_lora
from internvl.errors import UserError
from internvl.model.loading import load_model


def assert_refused(adapter: Path, message: str, tmp_path: Path, capsys) -> None:
    """Merge and load an adapter: both end in one ``message`` (a pattern), and nothing is written."""
    out = tmp_path / "out" / "merged"
    with pytest.raises(SystemExit, match="2"):
        merge_lora([str(adapter), str(out)])
    said = capsys.readouterr().err
    with pytest.raises(UserError, match=message) as err:
        load_model(adapter)
    assert said == f"error: {err.value}\n"  # merging and loading say the same
    assert not out.parent.exists()
