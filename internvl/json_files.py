"""Reading and writing JSON files: one form, and one set of messages, for all; a written one is whole or as it was."""

import json
import os
import shlex
from collections import Counter
from pathlib import Path

from internvl.errors import UserError

UTF8_MARK = b"\xef\xbb\xbf"  # a byte order mark, which some editors put before UTF-8
# How files begin that are mistaken for JSON: what they are, and how to get the text.
OTHER_FORMS = {
    b"\xff\xfe": ("UTF-16 text", "Save the file as UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "Save the file as UTF-8"),
    b"\x1f\x8b": ("gzip-compressed", "Unpack it: gunzip < FILE > UNPACKED"),
    b"\x28\xb5\x2f\xfd": ("zstd-compressed", "Unpack it: unzstd < FILE > UNPACKED"),
    b"\xfd7zXZ\0": ("xz-compressed", "Unpack it: unxz < FILE > UNPACKED"),
    b"BZh": ("bzip2-compressed", "Unpack it: bunzip2 < FILE > UNPACKED"),
    b"PK\x03\x04": ("a zip archive", "Unpack it: unzip FILE"),
    b"PAR1": ("a Parquet table", "Write its rows as JSONL, for example with pandas: read_parquet(FILE).to_json"),
    b"ARROW1": ("an Arrow file", "Write its rows as JSONL, for example with the datasets library: Dataset.to_json"),
    b"version https://git-lfs": ("a Git LFS pointer, not the file", "Fetch the file: git lfs pull"),
}


def check_form(file: Path, head: bytes) -> None:
    """Refuse a file whose first bytes, ``head``, show that it is not text in UTF-8.

    Raises:
        UserError: it is compressed, an archive, a table, UTF-16 or a pointer; with how to get its text.
    """
    for start, (form, todo) in OTHER_FORMS.items():
        if head.startswith(start):
            raise UserError(f"{file}:1: is {form}. {todo.replace('FILE', shlex.quote(str(file)))}.")


def read_json(file: Path, todo: str = "Correct the file") -> object:
    """Parse a JSON file, with or without a byte order mark in front; ``todo`` ends the messages.

    Raises:
        UserError: it cannot be read, is not JSON in UTF-8 (``check_form``), or is JSON that readers would understand
            differently: a key twice in an object, NaN or Infinity, a number of thousands of digits, lists in lists
            without end.
    """
    try:
        content = file.read_bytes()
        check_form(file, content)
        text = content.removeprefix(UTF8_MARK).decode()
        return json.loads(text, object_pairs_hook=unique_keys, parse_constant=_refuse_constant)
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
    """Refuse parsed JSON with a lone surrogate, where what stands in it is written to other files.

    Raises:
        UserError: it has one.
    """
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as err:
        half = err.object[err.start]
        raise UserError(f"{file}: has a lone surrogate ({half!r}). Write the whole character, or remove it.") from err


class DuplicateKeyError(ValueError):
    """An object of a JSON file says a key twice."""


def unique_keys(pairs: list[tuple[str, object]]) -> dict:
    """Return a parsed object: the ``object_pairs_hook`` that refuses one with a key twice (DuplicateKeyError)."""
    record = dict(pairs)
    if len(record) != len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise DuplicateKeyError(f"has the key {key!r} twice")
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"has {name}, which is not a number")


def encode_line(record: dict) -> bytes:
    """Return a record as a JSON line, readable except where a lone surrogate (outside the texts) must be escaped."""
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record).encode() + b"\n"


def write_json(file: Path, content: object) -> None:
    """Write JSON as checkpoints have it: two spaces, UTF-8, a newline at the end; beside, then renamed."""
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
    try:
        encoded = text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can express
        encoded = json.dumps(content, indent=2, default=str).encode()
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        beside.write_bytes(encoded + b"\n")
        os.replace(beside, file)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
