"""Annotation files: JSON lines → checked rows. Every error names file and line."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from internvl.data.annotation_text import BLOCK_BYTES, map_text
from internvl.data.problems import RowError
from internvl.data.row_keys import (
    check_meaningful,
    check_media_keys,
    check_own_form,
    system_message,
    unread_keys,
)
from internvl.data.turns import check_value, parse_turns, rejected_answer
from internvl.data.weights import answer_weights
from internvl.errors import UserError, shorten
from internvl.json_files import UTF8_MARK, DuplicateKeyError, check_form, unique_keys
from internvl.limits import MAX_LINE_BYTES
from internvl.model.internvl_chat.conversation import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, Turn

WHITE_SPACE = b" \t\r\v\f"  # what bytes.strip() takes away, but for the newline
KINDS = ("text", "image", "images", "video")


@dataclass(frozen=True)
class Row:
    """One checked conversation.

    ``turns`` start with an optional system turn and then alternate human, gpt. ``images`` are paths relative to the
    data set's root, one per ``<image>`` in the human turns, and ``sizes`` their declared (width, height) in px or
    None. A row with a ``video`` has one ``<video>`` instead; ``clip`` is the part of it to use, (start, end) in
    seconds. ``where`` is ``file:line`` for messages. ``notes`` name what of the row is not used, for the check to
    count. ``weights`` are what its answers count in the loss, () where each counts 1. ``rejected`` is a
    worse text of the last answer, or None.
    """

    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    sizes: tuple[tuple[int, int] | None, ...]
    where: str
    video: str | None = None
    clip: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    rejected: str | None = None

    @property
    def kind(self) -> str:
        """One of :data:`KINDS`."""
        if self.video:
            return "video"
        return KINDS[min(len(self.images), 2)]


class AnnotationFile:
    """Random access to the lines of a JSONL file, plain or compressed with gzip, without holding it in memory.

    Blank lines do not count.

    Raises:
        UserError: the file cannot be read, or as a whole is of another form.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._bytes = map_text(self.path)
        head = self._bytes[:4096].tobytes()
        self._check_form(head)
        ends = self._find_newlines()
        if len(self._bytes) and (len(ends) == 0 or ends[-1] != len(self._bytes) - 1):
            ends = np.append(ends, len(self._bytes))
        starts = np.append(0, ends[:-1] + 1) if len(ends) else ends
        if head.startswith(UTF8_MARK):  # some editors put it there; it is not part of the first row
            starts[0] = len(UTF8_MARK)
        filled = ends > starts
        # Only a line that starts with white space may be blank and yet hold something.
        odd = np.flatnonzero(filled)
        odd = odd[np.isin(self._bytes[starts[odd]], np.frombuffer(WHITE_SPACE, np.uint8))]
        filled[odd] = [bool(self._bytes[starts[line] : ends[line]].tobytes().strip()) for line in odd]
        self._starts, self._ends = starts[filled], ends[filled]
        self._line_numbers = np.flatnonzero(filled) + 1

    def _find_newlines(self) -> np.ndarray:
        """Return where the newlines are, int64, block by block: a comparison of the whole takes as much memory."""
        blocks = range(0, len(self._bytes), BLOCK_BYTES)
        found = [np.flatnonzero(self._bytes[start : start + BLOCK_BYTES] == ord("\n")) + start for start in blocks]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def _check_form(self, head: bytes) -> None:
        check_form(self.path, head)
        if head.removeprefix(UTF8_MARK).lstrip().startswith(b"["):
            raise UserError(
                f"{self.path}:1: starts with '[', a JSON array instead of JSONL. Write one object per line: "
                f"python tools/convert_annotations.py {self.path} OUT.jsonl --from llava."
            )

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, index: int) -> str:
        """Return ``file:line`` of row ``index``."""
        return f"{self.path}:{self._line_numbers[index]}"

    def sha256(self) -> str:
        """Return the SHA-256 of the file's text."""
        return hashlib.sha256(self._bytes.data).hexdigest()

    def line(self, index: int) -> bytes:
        """Return the bytes of row ``index``, without its newline."""
        return self._bytes[self._starts[index] : self._ends[index]].tobytes()

    def row(self, index: int) -> Row:
        """Parse and check row ``index``.

        Raises:
            RowError: the line is not JSON or not a conversation that could be trained on.
        """
        where = self.where(index)
        size = int(self._ends[index] - self._starts[index])
        if size > MAX_LINE_BYTES:
            raise RowError(
                where,
                "line too long",
                f"the line has {size:,} bytes",
                "Put each row on a line of its own, or split it",
            )
        return parse_row(parse_line(self.line(index), where), where)


def parse_line(line: bytes, where: str) -> object:
    """Return the JSON value of a line.

    Raises:
        RowError: it is not UTF-8, not JSON, or an object that says the same key twice.
    """
    try:
        return json.loads(line.decode("utf-8"), object_pairs_hook=unique_keys)
    except UnicodeDecodeError as err:
        raise RowError(where, "not UTF-8", f"is not UTF-8 text ({err.reason})", "Save the file as UTF-8") from err
    except json.JSONDecodeError as err:
        raise RowError(
            where,
            "not JSON",
            f"is not valid JSON ({err.msg} at column {err.colno})",
            "Write one JSON object per line (JSONL, not a JSON array)",
        ) from err
    except RecursionError as err:
        raise RowError(where, "not JSON", "is nested too deeply", "Write a conversation as in the README") from err
    except DuplicateKeyError as err:
        raise RowError(where, "duplicate key", str(err), "Keep one of them") from err
    except ValueError as err:
        # Python refuses to read whole numbers of thousands of digits.
        raise RowError(where, "not JSON", f"has an unreadable number ({err})", "Correct or remove it") from err


def parse_row(record: object, where: str) -> Row:
    """Check one annotation object; see :class:`Row` for what comes out.

    A single image or a video without its mark in the text is put before the first question, as the original did.

    Raises:
        RowError: it is not a conversation that could be trained on.
    """
    if not isinstance(record, dict):
        what = f"holds {type(record).__name__}, not an object"
        raise RowError(where, "not an object", what, "Write one JSON object per line")
    check_own_form(record, where)
    check_meaningful(record, where)
    check_media_keys(record, where)
    turns = parse_turns(record.get("conversations"), where)
    system = system_message(record, where)
    if system is not None:
        turns = _add_system_turn(turns, system, where)
    images = record.get("image") or []
    single = not isinstance(images, list)
    images = [image if type(image) is str else path_of(image) for image in ([images] if single else images)]
    if not all(isinstance(image, str) and image for image in images):
        what = f"image is {shorten(record['image'])}"
        raise RowError(where, "image path", what, "Give a path or a list of paths")
    video = path_of(record.get("video") or None)
    if isinstance(video, list) and len(video) == 1:
        video = path_of(video[0])
    if video is not None and not isinstance(video, str):
        raise RowError(where, "video path", f"video is {shorten(video)}", "Give the path of one video")
    if video and images:
        what = f"has images ({shorten(images)}) and a video ({shorten(video)})"
        raise RowError(where, "images and video", what, "Give one row either images or a video")
    if video:
        _check_video_mark(turns, where)
    _place_mark(turns, VIDEO_PLACEHOLDER, "videos", int(video is not None), where)
    _place_mark(turns, IMAGE_PLACEHOLDER, "images", len(images), where)
    return Row(
        turns=tuple(turns),
        images=tuple(images),
        sizes=_parse_sizes(record, single, len(images), where),
        where=where,
        video=video,
        clip=_parse_clip(record, where) if video else None,
        notes=tuple(unread_keys(record)),
        weights=answer_weights(record, where),
        rejected=rejected_answer(record, turns, where),
    )


def path_of(reference: object) -> object:
    """Return the path of an image or video, which exports of `datasets` wrap as ``{"path": …, "bytes": null}``."""
    if isinstance(reference, dict) and not reference.get("bytes") and isinstance(reference.get("path"), str):
        return reference["path"]
    return reference


def _add_system_turn(turns: list[Turn], message: str, where: str) -> list[Turn]:
    """Return turns with a system message in front, which a row had in a key of its own.

    Raises:
        RowError: there is a system turn that says something else, or the message may not be in a prompt.
    """
    turn = Turn("system", message)
    check_value(turn, 0, where)
    if turns[0].role != "system":
        return [turn, *turns]
    if turns[0].value.strip() != message.strip():
        what = "has a system turn and another message in the key 'system' or 'system_prompt'"
        raise RowError(where, "system message", what, "Keep one of them")
    return turns


def _place_mark(turns: list[Turn], mark: str, noun: str, count: int, where: str) -> None:
    """Check that the human turns have ``count`` marks; a single missing one is put before the first question."""
    found = sum([turn.value.count(mark) for turn in turns if turn.role == "human"])
    if count == 1 and found == 0:
        first = next(index for index, turn in enumerate(turns) if turn.role == "human")
        turns[first] = turns[first]._replace(value=f"{mark}\n{turns[first].value}")
    elif found != count:
        raise RowError(
            where,
            f"number of {mark} marks",
            f"has {found} {mark} markers in the human turns but lists {count} {noun}",
            "Make the counts equal",
        )


def _check_video_mark(turns: list[Turn], where: str) -> None:
    """Refuse a row with a video and no image whose questions mark it as an image, as LLaVA's video sets do.

    Raises:
        RowError: says which mark it is to be.
    """
    found = sum(turn.value.count(IMAGE_PLACEHOLDER) for turn in turns if turn.role == "human")
    if found:
        what = f"has a video and no image, and {found} {IMAGE_PLACEHOLDER} in the human turns"
        todo = f"Mark the video with {VIDEO_PLACEHOLDER}; tools/convert_annotations.py --from llava does"
        raise RowError(where, "mark of a video", what, todo)


def _parse_sizes(record: dict, single: bool, num_images: int, where: str) -> tuple[tuple[int, int] | None, ...]:
    """Return the declared (width, height) of each image: ``width``/``height``, or ``width_list``/``height_list``."""
    keys = ("width", "height") if single else ("width_list", "height_list")
    if any(record.get(key) is None for key in keys):
        return (None,) * num_images
    widths, heights = ([record[key]] if single else record[key] for key in keys)
    sizes = list(zip(widths, heights, strict=False)) if isinstance(widths, list) and isinstance(heights, list) else []
    whole = all(type(side) is int and side > 0 for size in sizes for side in size)
    if len(sizes) != num_images or not whole:
        what = (
            f"{keys[0]} {shorten(record[keys[0]])} and {keys[1]} {shorten(record[keys[1]])} do not give a size in px "
            f"for each of {num_images} images"
        )
        raise RowError(where, "declared size", what, "Correct or remove them")
    return tuple(sizes)


def _parse_clip(record: dict, where: str) -> tuple[float, float] | None:
    """Return the (start, end) in seconds of the part of a video to use, or None for all of it."""
    clip = record.get("clip")
    if clip is None:
        return None
    numbers = isinstance(clip, list) and all(type(side) in (int, float) and math.isfinite(side) for side in clip)
    if not numbers or len(clip) != 2 or not 0 <= clip[0] < clip[1]:
        raise RowError(where, "clip", f"clip is {shorten(clip)}", "Give [start, end] in seconds, or leave it out")
    return clip[0], clip[1]
