"""Annotations of other tools → rows of ours, and back to messages: one at a time, however many there are."""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ijson

from internvl.data.annotation import parse_line, parse_row
from internvl.data.problems import RowError
from internvl.errors import UserError
from internvl.model.internvl_chat.conversation import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER

CAPTION_PROMPT = "Provide a one-sentence caption for the provided image."
ROLES = {"user": "human", "assistant": "gpt", "human": "human", "gpt": "gpt", "system": "system"}
MESSAGE_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
# What conversion changes; all other fields of a row are kept as they are.
CONVERTED_FIELDS = {"conversations", "messages", "system", "image", "images", "video", "videos"}


@dataclass(frozen=True)
class Options:
    """What some formats need: the question about every picture, and what separates the columns of a table."""

    prompt: str = CAPTION_PROMPT
    delimiter: str = ","


def read_objects(path: Path) -> Iterator[tuple[str, object | RowError]]:
    """Yield (where, object) of JSON lines, or of a JSON array without reading it whole; a broken line as its error.

    Raises:
        UserError: the file is missing, or an array breaks off: nothing behind that point can be read.
    """
    with open_input(path) as stream:
        start = stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
        stream.seek(0)
        if start.startswith(b"["):
            number = 0
            try:
                for number, item in enumerate(ijson.items(skip_mark(stream), "item", use_float=True), 1):
                    yield f"{path}:item {number}", item
            except ijson.JSONError as err:
                raise UserError(f"{path}:item {number + 1}: is not valid JSON ({err}). Correct the file.") from err
            return
        for number, line in enumerate(skip_mark(stream), 1):
            if line.strip():
                where = f"{path}:{number}"
                try:
                    yield where, parse_line(line, where)
                except RowError as err:
                    yield where, err


def open_input(path: Path):
    if not path.is_file():
        raise UserError(f"{path}: there is no such file. Correct the path.")
    return open(path, "rb")


def skip_mark(stream):
    """Move a stream behind the mark that some editors put before UTF-8 text."""
    if stream.read(3) != b"\xef\xbb\xbf":
        stream.seek(0)
    return stream


def kept_fields(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in CONVERTED_FIELDS}


def media_fields(images: list, videos: list) -> dict:
    """Return image and video as our rows have them: one path, or a list of several."""
    fields = {}
    if images:
        fields["image"] = images[0] if len(images) == 1 else images
    if videos:
        fields["video"] = videos[0] if len(videos) == 1 else videos
    return fields


def as_list(value: object) -> list:
    """Return a field that may be one path or several as a list."""
    return [] if not value else value if isinstance(value, list) else [value]


def from_llava(record: dict, where: str) -> dict:
    """LLaVA's rows have our form."""
    return record


def from_messages(record: dict, where: str) -> dict:
    """ms-swift and OpenAI: ``messages`` of role and content (text or parts), ``images``, ``videos``."""
    messages = record.get("messages")
    if not isinstance(messages, list):
        todo = "Name the right format with --from"
        raise RowError(where, "messages", f"messages is {messages!r:.100}", todo)
    images, videos = as_list(record.get("images")), as_list(record.get("videos"))
    turns = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise RowError(where, "messages", f"message {number} is {message!r:.100}", "Give role and content")
        role, content = message.get("role"), message.get("content")
        if isinstance(content, list):
            content = join_parts(content, images, videos, number, where)
        turns.append({"from": ROLES.get(role, role) if isinstance(role, str) else role, "value": content})
    place_missing_marks(turns, images, videos)
    return {**kept_fields(record), **media_fields(images, videos), "conversations": turns}


def join_parts(parts: list, images: list, videos: list, number: int, where: str) -> str:
    """Return the text of a message given in parts, with marks; paths are added to ``images`` and ``videos``."""
    text = ""
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            text += part.get("text") or ""
        elif kind in ("image", "image_url", "video", "video_url"):
            mark, paths = (IMAGE_PLACEHOLDER, images) if kind.startswith("image") else (VIDEO_PLACEHOLDER, videos)
            path = part.get(kind) or part.get("url") or part.get("path")
            if path:  # without one, it is in the row's own list
                paths.append(path["url"] if isinstance(path, dict) and "url" in path else path)
            text += mark
        else:
            what = f"message {number} has a part of type {kind!r}"
            raise RowError(where, "part of a message", what, "Use text, image and video parts")
    return text


def place_missing_marks(turns: list[dict], images: list, videos: list) -> None:
    """Put marks before the first question when there are none at all, as ms-swift does."""
    for mark, paths in ((IMAGE_PLACEHOLDER, images), (VIDEO_PLACEHOLDER, videos)):
        texts = [turn["value"] for turn in turns if isinstance(turn["value"], str)]
        first = next((turn for turn in turns if turn["from"] == "human" and isinstance(turn["value"], str)), None)
        if paths and first and not any(mark in text for text in texts):
            first["value"] = f"{mark}\n" * len(paths) + first["value"]


def from_sharegpt(record: dict, where: str) -> dict:
    """LLaMA-Factory: ``conversations`` of from and value, ``system``, ``images``, ``videos``."""
    conversations = record.get("conversations")
    if not isinstance(conversations, list) or not all(isinstance(turn, dict) for turn in conversations):
        todo = "Name the right format with --from"
        raise RowError(where, "conversations", f"conversations is {conversations!r:.100}", todo)
    turns = [
        {"from": ROLES.get(str(turn.get("from")), turn.get("from")), "value": turn.get("value")}
        for turn in conversations
    ]
    if record.get("system"):
        turns.insert(0, {"from": "system", "value": record["system"]})
    images = as_list(record.get("images")) or as_list(record.get("image"))
    videos = as_list(record.get("videos")) or as_list(record.get("video"))
    place_missing_marks(turns, images, videos)
    return {**kept_fields(record), **media_fields(images, videos), "conversations": turns}


def read_json_rows(convert, path: Path, options: Options) -> Iterator[tuple[str, dict | RowError]]:
    """Yield (where, row) of a file of JSON objects."""
    for where, record in read_objects(path):
        if isinstance(record, RowError):
            yield where, record
        elif not isinstance(record, dict):
            yield where, RowError(where, "not an object", f"is {record!r:.100}", "Give an object per row")
        else:
            try:
                yield where, convert(record, where)
            except RowError as err:
                yield where, err


def ask(image: str, question: str, answer: str, **fields) -> dict:
    """Return a row with one picture, one question and one answer."""
    turns = [
        {"from": "human", "value": f"{IMAGE_PLACEHOLDER}\n{question}"},
        {"from": "gpt", "value": " ".join(answer.split())},
    ]
    return {**fields, "image": image, "conversations": turns}


def read_coco(path: Path, options: Options) -> Iterator[tuple[str, dict | RowError]]:
    """Yield a row per caption of a COCO captions file; only the pictures' names are held in memory."""
    try:
        with open_input(path) as stream:
            names = {image["id"]: image["file_name"] for image in ijson.items(stream, "images.item")}
        with open_input(path) as stream:
            for note in ijson.items(stream, "annotations.item"):
                where = f"{path}:annotation {note['id']}"
                if note["image_id"] in names:
                    yield where, ask(names[note["image_id"]], options.prompt, note["caption"], id=note["id"])
                else:
                    what = f"image_id {note['image_id']} is not among the images"
                    yield where, RowError(where, "unknown picture", what, "Add the image or remove the annotation")
    except ijson.JSONError as err:
        raise UserError(f"{path}: is not valid JSON ({err}). Copy the file again.") from err
    except (KeyError, TypeError) as err:
        raise UserError(f"{path}: is no COCO captions file (lacks {err}). Name the right format with --from.") from err


def read_csv(path: Path, options: Options) -> Iterator[tuple[str, dict | RowError]]:
    """Yield a row per line of a table with the columns image and caption, or image, question and answer."""
    open_input(path).close()
    with open(path, encoding="utf-8-sig", newline="") as stream:
        table = csv.DictReader(stream, delimiter=options.delimiter)
        columns = set(table.fieldnames or ())
        if not ({"image", "caption"} <= columns or {"image", "question", "answer"} <= columns):
            raise UserError(
                f"{path}:1: has the columns {', '.join(table.fieldnames or ()) or '(none)'}. Name them image and "
                "caption, or image, question and answer; --delimiter says what separates them."
            )
        for record in table:
            where = f"{path}:{table.line_num}"
            question = record.get("question") or options.prompt
            answer = record["answer"] if "answer" in columns else record["caption"]
            if not record["image"] or answer is None:
                yield where, RowError(where, "empty cell", f"has {record!r:.100}", "Fill in every column")
            else:
                yield where, ask(record["image"], question, answer)


def read_imagefolder(path: Path, options: Options) -> Iterator[tuple[str, dict | RowError]]:
    """Yield a row per picture of a folder: with metadata.csv or metadata.jsonl, or a .txt file beside each picture."""
    if not path.is_dir():
        raise UserError(f"{path}: is not a folder. Name the folder of the pictures.")
    tables = [path / "metadata.jsonl", path / "metadata.csv"]
    table = next((file for file in tables if file.is_file()), None)
    if table and table.suffix == ".csv":
        with open(table, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            for record in reader:
                yield caption_of(record, f"{table}:{reader.line_num}", options)
        return
    if table:
        for where, record in read_objects(table):
            yield (where, record) if isinstance(record, RowError) else caption_of(record, where, options)
        return
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() in PICTURE_SUFFIXES:
            caption, where = file.with_suffix(".txt"), str(file)
            if caption.is_file():
                text = caption.read_text(encoding="utf-8", errors="replace")
                yield where, ask(file.relative_to(path).as_posix(), options.prompt, text)
            else:
                what = "there is no caption beside it"
                yield where, RowError(where, "no caption", what, f"Write {caption.name} or remove the picture")


def caption_of(record: object, where: str, options: Options) -> tuple[str, dict | RowError]:
    """Return the row of an entry of metadata.csv or metadata.jsonl."""
    fields = record if isinstance(record, dict) else {}
    text = fields.get("text") or fields.get("caption")
    if not isinstance(fields.get("file_name"), str) or not isinstance(text, str):
        return where, RowError(where, "metadata", f"is {record!r:.100}", "Give file_name and text")
    return where, ask(fields["file_name"], options.prompt, text)


FORMATS = {
    "internvl": lambda path, options: read_json_rows(from_llava, path, options),
    "llava": lambda path, options: read_json_rows(from_llava, path, options),
    "messages": lambda path, options: read_json_rows(from_messages, path, options),
    "sharegpt": lambda path, options: read_json_rows(from_sharegpt, path, options),
    "coco": read_coco,
    "csv": read_csv,
    "imagefolder": read_imagefolder,
}


def read_rows(name: str, path: Path, options: Options) -> Iterator[tuple[str, dict | RowError]]:
    """Yield (where, row) of a file in the format called ``name``; a row that could not be trained on as its error."""
    for where, record in FORMATS[name](path, options):
        if not isinstance(record, RowError):
            try:
                parse_row(record, where)
            except RowError as err:
                record = err
        yield where, record


def to_messages(record: dict) -> dict:
    """Return one of our rows as ms-swift's messages; :func:`from_messages` turns it back."""
    row = parse_row(record, "row")
    messages = [{"role": MESSAGE_ROLES[turn.role], "content": turn.value} for turn in row.turns]
    media = {"images": list(row.images), "videos": [row.video] if row.video else []}
    return {**kept_fields(record), "messages": messages, **{key: value for key, value in media.items() if value}}


def write_lines(file: Path, records: Iterable[dict]) -> int:
    """Write JSON lines beside ``file`` and rename them at the end; returns how many."""
    beside = file.with_name(f".{file.name}.partial")
    count = 0
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "w", encoding="utf-8") as stream:
            for record in records:
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
                count += 1
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
    return count
