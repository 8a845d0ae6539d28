"""Reading the project's Markdown: its code blocks, its commands, its links, and which headings it has."""

import re
from collections.abc import Iterator
from pathlib import Path


def blocks_of(file: Path, language: str) -> list[str]:
    """Return the fenced code blocks of a document that are in ``language``."""
    text = file.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands_of(file: Path) -> list[str]:
    """Return the commands of a document's bash blocks, each on one line and without its remark."""
    lines = [line for block in blocks_of(file, "bash") for line in block.replace("\\\n", " ").splitlines()]
    commands = (re.sub(r"\s+", " ", re.split(r"\s{2,}#", line)[0]).strip() for line in lines)
    return [command for command in commands if command]


def prose_of(file: Path) -> str:
    """Return a document without its fenced code blocks."""
    return re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def links_of(file: Path) -> Iterator[tuple[str, str]]:
    """Yield (path, anchor) of a document's relative links and images; the path is empty within the document."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(file)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors_of(file: Path) -> set[str]:
    """Return the anchors of a document's headings, as Git hosts and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", prose_of(file), re.MULTILINE)
    words = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[\s-]+", "-", heading) for heading in words}


def table_rows(file: Path) -> Iterator[list[str]]:
    """Yield the cells of every row of a document's tables, headings and rules left out."""
    rows = [line for line in prose_of(file).splitlines() if line.startswith("|")]
    for number, line in enumerate(rows):
        is_heading = number + 1 < len(rows) and set(rows[number + 1]) <= set("|-: ")
        if not is_heading and not set(line) <= set("|-: "):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def code_in(text: str) -> list[str]:
    """Return what stands between backticks."""
    return re.findall(r"`([^`]+)`", text)
