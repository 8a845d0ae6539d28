"""All advice in messages, taken from the source: which flags, commands, variables and files the user is sent to.

python -m tests.advice        # prints the list
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = ("internvl", "eval", "tools")
ERRORS = {"UserError", "RowError", "LongRowError", "VideoError", "FewerFramesError", "ValueError"}
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]+")
COMMAND = re.compile(r"(?:tools|shell|eval|tests)/[\w./-]+\.(?:py|sh)|evaluate\.sh")
VARIABLE = re.compile(r"\b(?:[A-Z]{2,}_[A-Z_]+|DEEPSPEED|GPUS|MODEL)\b(?==|\b)")


class Advice(NamedTuple):
    """A message that sends the user somewhere: where it is in the source, its text, and what it names."""

    where: str
    text: str
    flags: tuple[str, ...]
    commands: tuple[str, ...]


def text_of(node: ast.AST) -> str:
    """Return the text of a string expression, with … for what is put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.IfExp):
        return f"{text_of(node.body)} {text_of(node.orelse)}"
    return ""


def messages(file: Path) -> Iterator[Advice]:
    """Yield the messages of a file that name a flag or a command: of errors, warnings and constants for them."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        texts = []
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ERRORS or name in ("warning", "info", "error", "wrong", "raise_errors"):
                texts = [text_of(argument) for argument in (*node.args, *(key.value for key in node.keywords))]
        elif isinstance(node, ast.Assign):
            texts = [text_of(node.value)] if id(node.value) not in documented else []
        text = " ".join(filter(None, texts))
        flags, commands = tuple(dict.fromkeys(FLAG.findall(text))), tuple(dict.fromkeys(COMMAND.findall(text)))
        if " " in text and (flags or commands):
            yield Advice(f"{file.relative_to(REPOSITORY)}:{node.lineno}", " ".join(text.split()), flags, commands)


def all_advice() -> list[Advice]:
    """Return every advice of the project's Python sources, in order of place."""
    files = sorted(file for folder in SOURCES for file in (REPOSITORY / folder).rglob("*.py"))
    return [advice for file in files for advice in messages(file)]


if __name__ == "__main__":
    for advice in all_advice():
        sys.stdout.write(f"{advice.where}\n    {advice.text[:300]}\n")
