"""Imports go one way: model ← data ← training and evaluation; the closed model folder needs nothing of the rest."""

import ast
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "internvl"
CLOSED = PACKAGE / "model" / "internvl_chat"
# What each part may import of the package, beside itself and the small modules every part may use.
ALLOWED = {
    "model": set(),
    "launch": set(),
    "data": {"model"},
    "inference": {"model", "data"},
    "evaluation": {"model", "data", "inference"},
    "reward": {"model", "data", "inference", "evaluation"},
    "train": {"model", "data", "inference", "evaluation", "reward"},  # a training evaluates on its way
    "commands": {"model", "data", "inference", "evaluation", "reward", "train"},
}
SHARED = {
    "cli", "device", "distributed", "errors", "json_files", "limits", "logging_utils", "patterns", "progress",
    "repository", "schema",
}  # fmt: skip


def imported(file: Path) -> list[tuple[int, str]]:
    """(level, module) of every import in a file, also inside functions."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


@pytest.mark.parametrize("part", ALLOWED)
def test_each_part_imports_only_what_comes_before_it(part):
    allowed = ALLOWED[part] | SHARED | {part}
    for file in (PACKAGE / part).rglob("*.py"):
        for level, module in imported(file):
            if level == 0 and module.split(".")[0] == "internvl":
                assert module.split(".")[1] in allowed, f"{file.relative_to(REPOSITORY)} imports {module}"


@pytest.mark.parametrize("file", sorted(CLOSED.glob("*.py")), ids=lambda file: file.name)
def test_the_closed_folder_is_closed(file):
    libraries = {
        "torch", "transformers", "tokenizers", "PIL", "numpy", "sentencepiece", "peft",
        "io", "json", "copy", "dataclasses", "inspect", "logging",
        "functools", "struct", "pathlib", "typing", "collections.abc", "importlib", "math",
    }  # fmt: skip
    for level, module in imported(file):
        if level:
            assert level == 1 and "." not in module and (CLOSED / f"{module}.py").is_file(), module
        else:
            assert module in libraries or module.split(".")[0] in libraries, module


def test_importing_a_template_does_not_load_torch():
    import subprocess
    import sys

    code = "import internvl.model.internvl_chat.conversation, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0
