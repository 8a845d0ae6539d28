"""Annotations of other tools → rows of ours, and back to messages: one at a time, however many there are."""

import csv
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from internvl.data.annotation import MAX_LINE_BYTES, parse_line, parse_row
from internvl.data.json_stream import UTF8_MARK, BrokenJsonError, stream_json
from internvl.data.problems import RowError
from internvl.errors import UserError, shorten
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
    if stream.read(3) != UTF8_MARK:
        stream.seek(0)
    return stream


def kept_fields(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in CONVERTED_FIELDS}


def media_fields(images: list, videos: list, record: dict) -> dict:
    """Return image and video as our rows have them: one path, or a list of several or of declared sizes."""
    fields = {}
    if images:
        fields["image"] = images[0] if len(images) == 1 and "width_list" not in record else images
    if videos:
        fields["video"] = videos[0] if len(videos) == 1 else videos
    return fields


def one_list(where: str, noun: str, *places: object) -> list:
    """Return the paths of a row, which may be one or a list, and stand at several places if they are the same."""
    lists = [place if isinstance(place, list) else [place] for place in places if place]
    for other in lists[1:]:
        if other != lists[0]:
            what = f"lists {shorten(lists[0], 100)} and {shorten(other, 100)} as its {noun}"
            raise RowError(where, f"{noun} at two places", what, "Keep one of the lists")
    return list(lists[0]) if lists else []


def refuse_other_fields(record: dict, known: set[str], where: str) -> None:
    """Refuse fields of another format, which conversion would lose."""
    other = next((key for key in sorted(CONVERTED_FIELDS - known) if record.get(key)), None)
    if other:
        what = f"has the key {other!r} ({shorten(record[other], 60)}), which is not of this format"
        raise RowError(where, "key of another format", what, "Name the right format with --from, or remove the key")


def from_llava(record: dict, where: str) -> dict:
    """LLaVA's rows have our form."""
    refuse_other_fields(record, {"conversations", "image", "video"}, where)
    return record


def from_messages(record: dict, where: str) -> dict:
    """ms-swift and OpenAI: ``messages`` of role and content (text or parts), ``system``, ``images``, ``videos``."""
    messages = record.get("messages")
    if not isinstance(messages, list):
        todo = "Name the right format with --from"
        raise RowError(where, "messages", f"messages is {shorten(messages, 100)}", todo)
    refuse_other_fields(record, CONVERTED_FIELDS - {"conversations"}, where)
    in_parts = {IMAGE_PLACEHOLDER: [], VIDEO_PLACEHOLDER: []}
    turns = [{"from": "system", "value": record["system"]}] if record.get("system") else []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise RowError(where, "messages", f"message {number} is {shorten(message, 100)}", "Give role and content")
        role, content = message.get("role"), message.get("content")
        if isinstance(content, list):
            content = join_parts(content, in_parts, number, where)
        turns.append({"from": ROLES.get(role, role) if isinstance(role, str) else role, "value": content})
    images = one_list(where, "pictures", record.get("images"), record.get("image"), in_parts[IMAGE_PLACEHOLDER])
    videos = one_list(where, "videos", record.get("videos"), record.get("video"), in_parts[VIDEO_PLACEHOLDER])
    place_missing_marks(turns, images, videos)
    return {**kept_fields(record), **media_fields(images, videos, record), "conversations": turns}


def join_parts(parts: list, found: dict[str, list], number: int, where: str) -> str:
    """Return the text of a message given in parts, with marks; paths are added to ``found`` by mark."""
    text = ""
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text += part["text"]
        elif kind in ("image", "image_url", "video", "video_url"):
            mark = IMAGE_PLACEHOLDER if kind.startswith("image") else VIDEO_PLACEHOLDER
            path = part.get(kind) or part.get("url") or part.get("path")
            if path:  # without one, it is in the row's own list
                found[mark].append(path["url"] if isinstance(path, dict) and "url" in path else path)
            text += mark
        else:
            what = f"message {number} has a part of type {shorten(kind, 30)} ({shorten(part, 100)})"
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
        raise RowError(where, "conversations", f"conversations is {shorten(conversations, 100)}", todo)
    refuse_other_fields(record, CONVERTED_FIELDS - {"messages"}, where)
    turns = [
        {"from": ROLES.get(str(turn.get("from")), turn.get("from")), "value": turn.get("value")}
        for turn in conversations
    ]
    if record.get("system"):
        turns.insert(0, {"from": "system", "value": record["system"]})
    images = one_list(where, "pictures", record.get("images"), record.get("image"))
    videos = one_list(where, "videos", record.get("videos"), record.get("video"))
    place_missing_marks(turns, images, videos)
    return {**kept_fields(record), **media_fields(images, videos, record), "conversations": turns}


def read_json_rows(convert, path: Path, options: Options) -> Iterator[tuple[str, dict | RowError]]:
    """Yield (where, row) of a file of JSON objects."""
    for where, record in read_objects(path):
        if isinstance(record, RowError):
            yield where, record
        elif not isinstance(record, dict):
            yield where, RowError(where, "not an object", f"is {shorten(record, 100)}", "Give an object per row")
        else:
            try:
                yield where, convert(record, where)
            except RowError as err:
                yield where, err


def ask(image: str, question: str, answer: str, **fields) -> dict:
    """Return a row with one picture, one question and one answer."""
    turns = [
        {"from": "human", "value": f"{IMAGE_PLACEHOLDER}\n{question}"},
        {"from": "gpt", "value": answer},
    ]
    return {**fields, "image": image, "conversations": turns}


def one_line(caption: str) -> str:
    """Return a caption without newlines and spaces around it; COCO has some of both."""
    return " ".join(caption.split())


def read_coco(path: Path, options: Options) -> Iterator[tuple[str, dict | RowError]]:
    """Yield a row per caption of a COCO captions file; only the pictures' names are held in memory."""
    try:
        with open_input(path) as stream:
            names = {image["id"]: image["file_name"] for image in stream_json(stream, "images.item")}
        if not names:
            raise UserError(f"{path}: is no COCO captions file (has no images). Name the right format with --from.")
        with open_input(path) as stream:
            for number, note in enumerate(stream_json(stream, "annotations.item"), 1):
                yield coco_row(note, names, f"{path}:annotation {number}", options.prompt)
    except BrokenJsonError as err:
        raise UserError(f"{path}: {err}. Copy the file again.") from err
    except (KeyError, TypeError) as err:
        raise UserError(f"{path}: is no COCO captions file (lacks {err}). Name the right format with --from.") from err


def coco_row(note: object, names: dict, where: str, prompt: str) -> tuple[str, dict | RowError]:
    """Return the row of an entry of ``annotations``."""
    fields = note if isinstance(note, dict) else {}
    caption, image_id = fields.get("caption"), fields.get("image_id")
    if not isinstance(caption, str) or not isinstance(image_id, (int, float, str)):
        return where, RowError(where, "annotation", f"is {shorten(note, 100)}", "Give image_id and caption")
    if image_id not in names:
        what = f"image_id {image_id} is not among the images"
        return where, RowError(where, "unknown picture", what, "Add the image or remove the annotation")
    return where, ask(names[image_id], prompt, one_line(caption), id=fields.get("id"))


def read_table(path: Path, needed: list[list[str]], delimiter: str) -> Iterator[tuple[str, dict | RowError]]:
    """Yield (where, cells by column) of a table; a line of more or fewer cells than columns as its error.

    Raises:
        UserError: it lacks all sets of columns in ``needed``, has a column twice, is not UTF-8, or its quotation marks
            do not match, so that what is behind that point cannot be told apart.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    with open_input(path) as stream:
        table = csv.DictReader((line.decode() for line in skip_mark(stream)), delimiter=delimiter, strict=True)
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
            raise UserError(f"{where}: is no line of a table ({err}). Check its quotation marks.") from err


def read_csv(path: Path, options: Options) -> Iterator[tuple[str, dict | RowError]]:
    """Yield a row per line of a table with the columns image and caption, or image, question and answer."""
    for where, record in read_table(path, [["image", "caption"], ["image", "question", "answer"]], options.delimiter):
        if isinstance(record, RowError):
            yield where, record
        elif not record["image"]:
            yield where, RowError(where, "empty cell", f"has {shorten(record, 100)}", "Fill in every column")
        else:
            answer = record["answer"] if "answer" in record else one_line(record["caption"])
            yield where, ask(record["image"], record.get("question") or options.prompt, answer)


def read_imagefolder(path: Path, options: Options) -> Iterator[tuple[str, dict | RowError]]:
    """Yield a row per picture of a folder: with metadata.csv or metadata.jsonl, or a .txt file beside each picture."""
    if not path.is_dir():
        raise UserError(f"{path}: is not a folder. Name the folder of the pictures.")
    lines, table = path / "metadata.jsonl", path / "metadata.csv"
    if lines.is_file() or table.is_file():
        columns = [["file_name", "text"], ["file_name", "caption"]]
        records = read_objects(lines) if lines.is_file() else read_table(table, columns, options.delimiter)
        for where, record in records:
            yield (where, record) if isinstance(record, RowError) else caption_of(record, where, options)
        return
    for folder, subfolders, names in os.walk(path):
        subfolders.sort()
        for name in sorted(names):  # names alone: paths of a million pictures would take some hundred MB
            if Path(name).suffix.lower() in PICTURE_SUFFIXES:
                yield text_beside(Path(folder, name), path, options)


def text_beside(file: Path, folder: Path, options: Options) -> tuple[str, dict | RowError]:
    """Return the row of a picture with its caption in a .txt file of the same stem."""
    caption, where = file.with_suffix(".txt"), str(file)
    try:
        text = caption.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        what = "there is no caption beside it"
        return where, RowError(where, "no caption", what, f"Write {caption.name} or remove the picture")
    except UnicodeDecodeError as err:
        where = str(caption)
        return where, RowError(where, "not UTF-8", f"is not UTF-8 text ({err.reason})", "Save the file as UTF-8")
    return where, ask(file.relative_to(folder).as_posix(), options.prompt, one_line(text))


def caption_of(record: object, where: str, options: Options) -> tuple[str, dict | RowError]:
    """Return the row of an entry of metadata.csv or metadata.jsonl."""
    fields = record if isinstance(record, dict) else {}
    text = fields.get("text") or fields.get("caption")
    if not isinstance(fields.get("file_name"), str) or not isinstance(text, str):
        return where, RowError(where, "metadata", f"is {shorten(record, 100)}", "Give file_name and text")
    return where, ask(fields["file_name"], options.prompt, one_line(text))


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
        with open(beside, "wb") as stream:
            for record in records:
                stream.write(encode_line(record))
                count += 1
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
    return count


def encode_line(record: dict) -> bytes:
    """Return a record as a JSON line, readable except where half a character (outside the texts) must be escaped."""
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record).encode() + b"\n"
