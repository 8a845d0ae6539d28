"""Annotations of other tools → rows of ours, and back to messages: one at a time, however many there are."""

import csv
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from internvl.data.annotation import parse_line, parse_row
from internvl.data.conversation_formats import CONVERTERS, check_shape, kept_fields
from internvl.data.episodes import RECORD_READERS, EpisodeOptions, read_episodes
from internvl.data.grounding_marks import fill_in_marks
from internvl.data.image_files import image_suffixes
from internvl.data.json_stream import BrokenJsonError, stream_json
from internvl.data.problems import RowError
from internvl.errors import UserError, shorten
from internvl.json_files import UTF8_MARK, check_form, encode_line
from internvl.limits import MAX_LINE_BYTES
from internvl.model.internvl_chat.conversation import IMAGE_PLACEHOLDER

logger = logging.getLogger(__name__)
CAPTION_PROMPT = "Provide a one-sentence caption for the provided image."
MESSAGE_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


@dataclass(frozen=True)
class Options:
    """What some formats need.

    ``prompt`` is the question about every image that comes with a caption, ``delimiter`` separates the columns of a
    table, and ``root`` is where the paths of images start, whose sizes boxes in pixels are relative to. ``episodes``
    says how frames of an agent become rows.
    """

    prompt: str = CAPTION_PROMPT
    delimiter: str = ","
    root: Path | None = None
    episodes: EpisodeOptions = EpisodeOptions()


def _read_objects(path: Path) -> Iterator[tuple[str, object | RowError]]:
    """Yield (where, object) of JSON lines, or of a JSON array without reading it whole; a broken line as its error.

    Raises:
        UserError: the file is missing, or an array breaks off: nothing behind that point can be read.
    """
    with _open_input(path) as stream:
        start = stream.read(4096).removeprefix(UTF8_MARK).lstrip()
        stream.seek(0)
        if start.startswith(b"["):
            number = 0
            try:
                for number, item in enumerate(stream_json(stream, "item"), 1):
                    yield f"{path}:item {number}", item
            except BrokenJsonError as err:
                raise UserError(f"{path}:item {number + 1}: {err}. Correct the file.") from err
            return
        for number, line in enumerate(_skip_mark(stream), 1):
            if line.strip():
                where = f"{path}:{number}"
                try:
                    yield where, parse_line(line, where)
                except RowError as err:
                    yield where, err


def _open_input(path: Path):
    if not path.is_file():
        raise UserError(f"{path}: there is no such file. Correct the path.")
    stream = open(path, "rb")
    try:
        check_form(path, stream.read(64))
    except UserError:
        stream.close()
        raise
    stream.seek(0)
    return stream


def _skip_mark(stream):
    """Move a stream behind the mark that some editors put before UTF-8 text."""
    if stream.read(3) != UTF8_MARK:
        stream.seek(0)
    return stream


def _read_json_rows(name: str, path: Path, options: Options) -> Iterator[tuple[str, dict | RowError]]:
    """Yield (where, row) of a file of JSON objects in the format called ``name``."""
    convert = CONVERTERS[name]
    for where, record in _read_objects(path):
        if isinstance(record, RowError):
            yield where, record
        elif not isinstance(record, dict):
            yield where, RowError(where, "not an object", f"is {shorten(record, 100)}", "Give an object per row")
        else:
            try:
                check_shape(record, name, where)
                row = convert(record, where)
                yield where, fill_in_marks(row, where, options.root or path.parent)
            except RowError as err:
                yield where, err


def read_captions(path: Path, options: Options) -> Iterator[tuple[str, dict | RowError]]:
    """Yield a row per caption of a list of ``{"image", "caption"}``, as BLIP and LAVIS have them."""
    for where, record in _read_objects(path):
        if isinstance(record, RowError):
            yield where, record
            continue
        if not isinstance(record, dict):
            yield where, RowError(where, "not an object", f"is {shorten(record, 100)}", "Give an object per row")
            continue
        try:
            check_shape(record, "captions", where)
        except RowError as err:
            yield where, err
            continue
        captions = record["caption"] if isinstance(record["caption"], list) else [record["caption"]]
        fields = {key: value for key, value in record.items() if key not in ("image", "caption")}
        for caption in captions:
            if isinstance(record["image"], str) and isinstance(caption, str):
                yield where, ask(record["image"], options.prompt, one_line(caption), **fields)
            else:
                what = f"has the image {shorten(record['image'], 60)} and the caption {shorten(caption, 60)}"
                yield where, RowError(where, "caption", what, "Give a path and a text, or a list of texts")


def ask(image: str, question: str, answer: str, **fields) -> dict:
    """Return a row with one image, one question and one answer.

    Args:
        image: its path.
        question: without the mark of the image, which is put in front.
        answer: what is supervised.
        **fields: what else the row has.
    """
    turns = [
        {"from": "human", "value": f"{IMAGE_PLACEHOLDER}\n{question}"},
        {"from": "gpt", "value": answer},
    ]
    return {**fields, "image": image, "conversations": turns}


def one_line(caption: str) -> str:
    """Return a caption without newlines and spaces around it; COCO has some of both."""
    return " ".join(caption.split())


def _read_coco(path: Path, options: Options) -> Iterator[tuple[str, dict | RowError]]:
    """Yield a row per caption of a COCO captions file; only the images' names are held in memory."""
    _refuse_list(path)
    try:
        with _open_input(path) as stream:
            names = {
                image["id"]: image["file_name"] for image in cast(Iterator[dict], stream_json(stream, "images.item"))
            }
        if not names:
            raise UserError(f"{path}: is not a COCO captions file (has no images). Name the right format with --from.")
        with _open_input(path) as stream:
            for number, note in enumerate(stream_json(stream, "annotations.item"), 1):
                yield _coco_row(note, names, f"{path}:annotation {number}", options.prompt)
    except BrokenJsonError as err:
        raise UserError(f"{path}: {err}. Copy the file again.") from err
    except (KeyError, TypeError) as err:
        raise UserError(
            f"{path}: is not a COCO captions file (lacks {err}). Name the right format with --from."
        ) from err


def _refuse_list(path: Path) -> None:
    """Refuse a list of objects, or lines of them, where one object with lists is due.

    Raises:
        UserError: names the format that the first object is of.
    """
    with _open_input(path) as stream:
        start = stream.read(1 << 16).removeprefix(UTF8_MARK).lstrip()
    is_list, is_lines = start.startswith(b"["), b"}\n{" in start.replace(b"\r", b"")
    if is_list or is_lines:
        where, first = next(_read_objects(path), (f"{path}:1", None))
        check_shape(first if isinstance(first, dict) else {}, "coco", where)


def _coco_row(note: object, names: dict, where: str, prompt: str) -> tuple[str, dict | RowError]:
    """Return the row of an entry of ``annotations``."""
    fields = note if isinstance(note, dict) else {}
    caption, image_id = fields.get("caption"), fields.get("image_id")
    if not isinstance(caption, str) or not isinstance(image_id, (int, float, str)):
        return where, RowError(where, "annotation", f"is {shorten(note, 100)}", "Give image_id and caption")
    if image_id not in names:
        what = f"image_id {image_id} is not among the images"
        return where, RowError(where, "unknown image", what, "Add the image or remove the annotation")
    return where, ask(names[image_id], prompt, one_line(caption), id=fields.get("id"))


def _read_table(path: Path, needed: list[list[str]], delimiter: str) -> Iterator[tuple[str, dict | RowError]]:
    """Yield (where, cells by column) of a table; a line of more or fewer cells than columns as its error.

    Raises:
        UserError: it lacks all sets of columns in ``needed``, has a column twice, is not UTF-8, or its quotation marks
            do not match, so that what is behind that point cannot be told apart.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    with _open_input(path) as stream:
        table = csv.DictReader((line.decode() for line in _skip_mark(stream)), delimiter=delimiter, strict=True)
        try:
            columns = table.fieldnames or []
            if len(set(columns)) != len(columns) or not any(set(names) <= set(columns) for names in needed):
                choices = " or ".join(", ".join(names) for names in needed)
                raise UserError(
                    f"{path}:1: has the columns {', '.join(columns) or '(none)'}. Name them {choices}, each once; "
                    "--delimiter says what separates them."
                )
            for record in table:
                where = f"{path}:{table.line_num}"
                if None in record or None in record.values():
                    cells = shorten(list(record.values()), 100)
                    what = f"has more or fewer cells than the {len(columns)} columns: {cells}"
                    todo = f"Put texts with {delimiter!r} between quotation marks"
                    yield where, RowError(where, "number of cells", what, todo)
                else:
                    yield where, record
        except UnicodeDecodeError as err:
            where = f"{path}:{table.line_num + 1}"
            raise UserError(f"{where}: is not UTF-8 text ({err.reason}). Save the file as UTF-8.") from err
        except csv.Error as err:
            where = f"{path}:{table.line_num + 1}"
            raise UserError(f"{where}: is not a line of a table ({err}). Check its quotation marks.") from err


def _read_csv(path: Path, options: Options) -> Iterator[tuple[str, dict | RowError]]:
    """Yield a row per line of a table with the columns image and caption, or image, question and answer."""
    for where, record in _read_table(path, [["image", "caption"], ["image", "question", "answer"]], options.delimiter):
        if isinstance(record, RowError):
            yield where, record
        elif not record["image"]:
            yield where, RowError(where, "empty cell", f"has {shorten(record, 100)}", "Fill in every column")
        else:
            answer = record["answer"] if "answer" in record else one_line(record["caption"])
            yield where, ask(record["image"], record.get("question") or options.prompt, answer)


def _read_imagefolder(path: Path, options: Options) -> Iterator[tuple[str, dict | RowError]]:
    """Yield a row per image of a folder: with metadata.csv or metadata.jsonl, or a .txt file beside each image."""
    if not path.is_dir():
        raise UserError(f"{path}: is not a folder. Name the folder of the images.")
    lines, table = path / "metadata.jsonl", path / "metadata.csv"
    if lines.is_file() or table.is_file():
        columns = [["file_name", "text"], ["file_name", "caption"]]
        records = _read_objects(lines) if lines.is_file() else _read_table(table, columns, options.delimiter)
        for where, record in records:
            yield (where, record) if isinstance(record, RowError) else _caption_of(record, where, options)
        return
    left_out = Counter()
    for folder, subfolders, names in os.walk(path):
        subfolders.sort()
        for name in sorted(names):  # names alone: paths of a million images would take some hundred MB
            suffix = Path(name).suffix.lower()
            if suffix in image_suffixes():
                yield _text_beside(Path(folder, name), path, options)
            elif suffix != ".txt" and not name.startswith("."):
                left_out[suffix or "no suffix"] += 1
    if left_out:
        logger.warning(
            "%s: %d files left out: %s.",
            *(path, left_out.total(), ", ".join(f"{suffix} {count}" for suffix, count in left_out.most_common(8))),
        )


def _text_beside(file: Path, folder: Path, options: Options) -> tuple[str, dict | RowError]:
    """Return the row of an image with its caption in a .txt file of the same stem."""
    caption, where = file.with_suffix(".txt"), str(file)
    try:
        text = caption.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        what = "there is no caption beside it"
        return where, RowError(where, "no caption", what, f"Write {caption.name} or remove the image")
    except UnicodeDecodeError as err:
        where = str(caption)
        return where, RowError(where, "not UTF-8", f"is not UTF-8 text ({err.reason})", "Save the file as UTF-8")
    return where, ask(file.relative_to(folder).as_posix(), options.prompt, one_line(text))


def _caption_of(record: object, where: str, options: Options) -> tuple[str, dict | RowError]:
    """Return the row of an entry of metadata.csv or metadata.jsonl."""
    fields = record if isinstance(record, dict) else {}
    text = fields.get("text") or fields.get("caption")
    if not isinstance(fields.get("file_name"), str) or not isinstance(text, str):
        return where, RowError(where, "metadata", f"is {shorten(record, 100)}", "Give file_name and text")
    return where, ask(fields["file_name"], options.prompt, one_line(text))


def _read_episodes(path: Path, options: Options) -> Iterator[tuple[str, dict | RowError]]:
    """Yield the rows of folders of episodes; see :func:`read_episodes`."""
    yield from read_episodes(path, options.root or path, options.episodes)


def _read_records(name: str, path: Path, options: Options) -> Iterator[tuple[str, dict | RowError]]:
    """Yield the rows of a file of steps or of questions about scenes, in the format called ``name``."""
    yield from RECORD_READERS[name](_read_objects(path), options.root or path.parent, options.episodes)


FORMATS: dict[str, Callable[[Path, Options], Iterator[tuple[str, dict | RowError]]]] = {
    **{name: partial(_read_json_rows, name) for name in CONVERTERS},
    "captions": read_captions,
    "coco": _read_coco,
    "csv": _read_csv,
    "imagefolder": _read_imagefolder,
    "episodes": _read_episodes,
    **{name: partial(_read_records, name) for name in RECORD_READERS},
}


def read_rows(name: str, path: Path, options: Options) -> Iterator[tuple[dict | RowError, str]]:
    """Yield (row, kind) of a file in the format called ``name``; a row that could not be trained on as its error."""
    for where, record in FORMATS[name](path, options):
        if isinstance(record, RowError):
            yield record, ""
            continue
        try:
            yield record, parse_row(record, where).kind
        except RowError as err:
            yield err, ""


def to_messages(record: dict) -> dict:
    """Return one of our rows as ms-swift's messages; :func:`from_messages` turns it back."""
    row = parse_row(record, "row")
    messages = [{"role": MESSAGE_ROLES[turn.role], "content": turn.value} for turn in row.turns]
    media = {"images": list(row.images), "videos": [row.video] if row.video else []}
    kept = kept_fields(record)
    if "rejected" in kept:
        kept["rejected_response"] = kept.pop("rejected")
    return {**kept, "messages": messages, **{key: value for key, value in media.items() if value}}


def write_lines(file: Path, records: Iterable[dict]) -> int:
    """Write JSON lines beside ``file`` and rename them at the end; returns how many."""
    beside = file.with_name(f".{file.name}.partial")
    count = 0
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as stream:
            for record in records:
                stream.write(encode_line(record))
                count += 1
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
    return count
