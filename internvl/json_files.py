"""Reading and writing JSON files: one form, and one set of messages, for all; a written one is whole or as it was."""

import json
import os
from collections import Counter
from pathlib import Path

from internvl.errors import UserError


def read_json(file: Path, todo: str = "Correct the file") -> object:
    """Parse a JSON file, with or without a byte order mark in front; ``todo`` ends the messages.

    Raises:
        UserError: it cannot be read, is not JSON in UTF-8, or is JSON that readers would understand differently: a
            key twice in an object, NaN or Infinity, a number of thousands of digits, lists in lists without end.
    """
    try:
        return json.loads(
            file.read_text(encoding="utf-8-sig"), object_pairs_hook=unique_keys, parse_constant=refuse_constant
        )
    except OSError as err:
        raise UserError(f"{file}: cannot be read: {err.strerror}. Check the path.") from err
    except UnicodeDecodeError as err:
        raise UserError(f"{file}: byte {err.start} is not UTF-8. Save the file as UTF-8.") from err
    except json.JSONDecodeError as err:
        raise UserError(f"{file}:{err.lineno}: is not valid JSON ({err.msg} at column {err.colno}). {todo}.") from err
    except RecursionError as err:
        raise UserError(f"{file}: is nested too deeply. {todo}.") from err
    except ValueError as err:  # of the two hooks, or Python's own about whole numbers of thousands of digits
        raise UserError(f"{file}: {err}. {todo}.") from err


def read_object(file: Path, todo: str = "Correct the file") -> dict:
    """Parse a JSON file that holds an object; errors as above."""
    content = read_json(file, todo)
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds {type(content).__name__} instead of an object. {todo}.")
    return content


def check_characters(content: object, file: Path) -> None:
    """Refuse parsed JSON with half a character, where what stands in it is written to other files.

    Raises:
        UserError: it has one.
    """
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as err:
        half = err.object[err.start]
        raise UserError(f"{file}: has half a character ({half!r}). Write the whole character, or remove it.") from err


class DuplicateKeyError(ValueError):
    """An object of a JSON file says a key twice."""


def unique_keys(pairs: list[tuple[str, object]]) -> dict:
    """Return a parsed object: the ``object_pairs_hook`` that refuses one with a key twice (DuplicateKeyError)."""
    record = dict(pairs)
    if len(record) != len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise DuplicateKeyError(f"has the key {key!r} twice")
    return record


def refuse_constant(name: str) -> None:
    raise ValueError(f"has {name}, which is no number")


def write_json(file: Path, content: object) -> None:
    """Write JSON as checkpoints have it: two spaces, UTF-8, a newline at the end; beside, then renamed."""
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
    try:
        encoded = text.encode()
    except UnicodeEncodeError:  # half a character, which only an escape can express
        encoded = json.dumps(content, indent=2, default=str).encode()
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        beside.write_bytes(encoded + b"\n")
        os.replace(beside, file)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
