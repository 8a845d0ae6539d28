"""What README.md and docs/ say: examples parse, links lead somewhere, messages and names are in the source."""

import ast
import json
import re
from pathlib import Path

import pytest

from tests.advice import text_of
from tests.conftest import REPOSITORY
from tests.documents import anchors_of, blocks_of, code_in, links_of, prose_of, table_rows

README = REPOSITORY / "README.md"
DOCUMENTS = [
    README,
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *(REPOSITORY / name for name in ("eval/caption/README.md", "internvl/data/README.md", "CONTRIBUTING.md")),
]
ARCHITECTURE = REPOSITORY / "docs" / "architecture.md"
PACKAGES = ("internvl/model/internvl_chat/", "internvl/model/", "internvl/data/", "internvl/train/") + (
    "internvl/inference/",
    "internvl/evaluation/",
    "internvl/reward/",
)
FIGURE = re.compile(r"(\d[\d,]*(?:\.\d+)?) (?:GiB|MiB|rows/s|times)")


def named(file: Path) -> str:
    return file.relative_to(REPOSITORY).as_posix()


def test_the_readme_stays_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 160


@pytest.mark.parametrize("file", DOCUMENTS, ids=named)
def test_links_lead_somewhere(file):
    """mkdocs checks the site; this checks the same links as a Git host follows them."""
    for path, anchor in links_of(file):
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), path
        if anchor:
            assert anchor in anchors_of(target), f"{path}#{anchor}"


@pytest.mark.parametrize("file", DOCUMENTS, ids=named)
def test_json_examples_are_accepted(file, tmp_path):
    """A row is accepted as a training row, where it is one of another tool after conversion; a meta entry as one."""
    from internvl.data.annotation import parse_row
    from internvl.data.conversation_formats import CONVERTERS, nearest_format
    from internvl.data.meta import read_entry
    from internvl.evaluation.datasets import ENTRY
    from internvl.schema import validate

    (tmp_path / "rows.jsonl").write_text("")
    for block in blocks_of(file, "json"):
        try:
            values = [json.loads(block)]
        except json.JSONDecodeError:
            values = [json.loads(line) for line in block.splitlines()]
        for value in values:
            if nearest_format(value):
                parse_row(CONVERTERS[nearest_format(value)](value, "row"), "row")
                continue
            for name, entry in value.items():
                if "eval" in named(file):
                    validate(ENTRY, entry, file, name)
                else:
                    here = {"root": str(tmp_path), "annotation": str(tmp_path / "rows.jsonl")}
                    read_entry(Path("meta.json"), name, {**entry, **here})


def test_the_four_kinds_of_rows_are_what_the_readme_says():
    from internvl.data.annotation import parse_row

    [rows] = blocks_of(README, "json")
    kinds = [parse_row(json.loads(line), "README.md").kind for line in rows.splitlines()]
    assert kinds == ["text", "image", "images", "video"]


def test_the_worked_example_of_the_evaluation_is_read_as_it_says(tmp_path):
    from internvl.evaluation.datasets import read_custom_set

    rows = blocks_of(REPOSITORY / "eval" / "caption" / "README.md", "json")[0]
    (tmp_path / "val.jsonl").write_text(rows)
    references = read_custom_set(tmp_path / "val.jsonl", tmp_path).references()
    assert list(references.values()) == [["A white stove.", "A stove with four plates."], ["Metal."], ["A whisk."]]


@pytest.mark.parametrize("file", DOCUMENTS, ids=named)
def test_python_examples_compile(file):
    for block in blocks_of(file, "python"):
        compile(block, named(file), "exec")


def literals(file: Path) -> str:
    """All texts of a source file, with … for what is put in, one a line."""
    source = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        return "\n".join(" ".join(text_of(node).split()) for node in ast.walk(ast.parse(source)))
    source = re.sub(r'" \\\n\s*"', " ", source).replace('\\"', '"')
    return re.sub(r"\$\{[^}]*\}|\$\w+|\$\([^)]*\)|\$", "…", source)


def test_every_message_of_troubleshooting_is_in_the_source():
    """… stands for what is filled in, so the texts between must all be in one source file."""
    folders = ("internvl", "eval", "tools", "shell")
    files = [file for folder in folders for file in (REPOSITORY / folder).rglob("*") if file.suffix in (".py", ".sh")]
    sources = [literals(file) for file in [*files, REPOSITORY / "evaluate.sh"]]
    quoted = [code_in(row[0])[0] for row in table_rows(REPOSITORY / "docs" / "troubleshooting.md")]
    assert len(quoted) >= 25
    for message in quoted:
        parts = [part for part in re.split(r"…|(?<=\.) ", message) if part.strip(" .()")]
        assert any(all(part in source for part in parts) for source in sources), message


def definitions(file: Path) -> set[str]:
    """The functions and classes of a source file, methods as Class.method."""
    source = file.read_text(encoding="utf-8")
    if file.suffix == ".sh":
        return set(re.findall(r"^(\w+)\(\)", source, re.MULTILINE))
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


def test_names_in_the_architecture_are_in_the_files_named_beside_them():
    found = 0
    for row in table_rows(ARCHITECTURE):
        words = code_in(" ".join(row))
        files = [REPOSITORY / word for word in words if re.fullmatch(r"[\w/.]+\.(py|sh)", word)]
        if not files:
            continue
        known = set().union(*(definitions(file) for file in files))
        # The first cell of the last table, and the last of the one before, are prose.
        cells = row[1:] if len(row) == 2 else row[1:3]
        for name in code_in(" ".join(cells)):
            if re.fullmatch(r"[A-Za-z_]+(\.[a-z_]+)?", name) and not name.endswith((".py", ".sh")):
                assert name in known, f"{name} is not in {', '.join(map(named, files))}"
                found += 1
    assert found >= 45


def test_the_module_map_is_complete():
    """Modules of the data package are in its own README."""
    on_map: dict[str, set[str]] = {}
    package = ""
    for row in table_rows(ARCHITECTURE):
        if row[0].strip("`") in PACKAGES or (not row[0] and package):
            package = row[0].strip("`") or package
            on_map.setdefault(package, set()).update(code_in(row[1]))
        else:
            package = ""
    on_map["internvl/data/"] = {
        word.removesuffix(".py") for word in code_in(prose_of(REPOSITORY / "internvl/data/README.md"))
    }
    for package in PACKAGES:
        modules = {file.stem for file in (REPOSITORY / package).glob("*.py")} - {"__init__"}
        assert modules - on_map[package] == set(), package
        if package != "internvl/data/":
            assert on_map[package] - modules == set(), package


@pytest.mark.parametrize("file", [README, REPOSITORY / "docs" / "training.md"], ids=named)
def test_figures_are_those_of_the_benchmarks(file):
    """Speed and memory in prose are what benchmarks/README.md has, or a rounding of it."""
    measured = (REPOSITORY / "benchmarks" / "README.md").read_text(encoding="utf-8")
    numbers = [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", measured)]
    for figure in FIGURE.findall(prose_of(file)):
        decimals = len(figure.partition(".")[2])
        value = float(figure.replace(",", ""))
        assert any(round(number, decimals) == value or number == value for number in numbers), figure
