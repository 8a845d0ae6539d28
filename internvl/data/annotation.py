"""Annotation files: JSON lines → checked rows. Every error names file and line."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from internvl.errors import UserError
from internvl.model.internvl_chat.conversation import (
    ADDED_SPECIAL_TOKENS,
    IMAGE_PLACEHOLDER,
    IMG_CONTEXT_TOKEN,
    IMG_END_TOKEN,
    IMG_START_TOKEN,
    RENAMED_SPECIAL_TOKENS,
    VIDEO_PLACEHOLDER,
    Turn,
)

# Boxes and references are written by people (`<ref>chair</ref><box>…</box>`); all others are ours to place.
RESERVED_TOKENS = [IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN, "<s>", "</s>", *RENAMED_SPECIAL_TOKENS]
assert set(RESERVED_TOKENS[:3]) < set(ADDED_SPECIAL_TOKENS)


@dataclass(frozen=True)
class Row:
    """One checked conversation.

    ``turns`` start with an optional system turn and then alternate human, gpt. ``images`` are paths relative to the
    data set's root, one per ``<image>`` in the human turns, and ``sizes`` their declared (width, height) in px or
    None. ``where`` is ``file:line`` for messages.
    """

    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    sizes: tuple[tuple[int, int] | None, ...]
    where: str


class AnnotationFile:
    """Random access to the lines of a JSONL file without holding it in memory; blank lines do not count."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._bytes = np.memmap(self.path, mode="r") if self.path.stat().st_size else np.empty(0, np.uint8)
        ends = np.flatnonzero(self._bytes == ord("\n"))
        if len(self._bytes) and (len(ends) == 0 or ends[-1] != len(self._bytes) - 1):
            ends = np.append(ends, len(self._bytes))
        starts = np.append(0, ends[:-1] + 1) if len(ends) else ends
        filled = np.array(
            [bool(self._bytes[start:end].tobytes().strip()) for start, end in zip(starts, ends, strict=True)],
            dtype=bool,
        )
        self._starts, self._ends = starts[filled], ends[filled]
        self._line_numbers = np.flatnonzero(filled) + 1

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, index: int) -> str:
        """Return ``file:line`` of row ``index``."""
        return f"{self.path}:{self._line_numbers[index]}"

    def row(self, index: int) -> Row:
        """Parse and check row ``index``.

        Raises:
            UserError: the line is not JSON or not a conversation that could be trained on.
        """
        line = self._bytes[self._starts[index] : self._ends[index]].tobytes()
        where = self.where(index)
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as err:
            raise UserError(f"{where}: is not UTF-8 text ({err.reason}). Save the file as UTF-8.") from err
        except json.JSONDecodeError as err:
            raise UserError(
                f"{where}: is not valid JSON ({err.msg} at column {err.colno}). "
                "Write one JSON object per line (JSONL, not a JSON array)."
            ) from err
        return parse_row(record, where)


def parse_row(record: object, where: str) -> Row:
    """Check one annotation object; see :class:`Row` for what comes out.

    A single picture without ``<image>`` in the text is put before the first question, as the original did.

    Raises:
        UserError: it is not a conversation that could be trained on.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where}: holds {type(record).__name__}, not an object. Write one JSON object per line.")
    turns = parse_turns(record.get("conversations"), where)
    if record.get("video"):
        raise UserError(f"{where}: video rows ({record['video']!r}) are not read yet. Remove the row.")
    images = record.get("image") or []
    single = isinstance(images, str)
    images = [images] if single else images
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        raise UserError(f"{where}: image is {record['image']!r}. Give a path or a list of paths.")
    num_markers = sum(turn.value.count(IMAGE_PLACEHOLDER) for turn in turns if turn.role == "human")
    if len(images) == 1 and num_markers == 0:
        first = next(index for index, turn in enumerate(turns) if turn.role == "human")
        turns[first] = turns[first]._replace(value=f"{IMAGE_PLACEHOLDER}\n{turns[first].value}")
        num_markers = 1
    if num_markers != len(images):
        raise UserError(
            f"{where}: has {num_markers} {IMAGE_PLACEHOLDER} markers in the human turns but lists {len(images)} "
            "pictures. Make the counts equal."
        )
    sizes = parse_sizes(record, single, len(images), where)
    return Row(turns=tuple(turns), images=tuple(images), sizes=sizes, where=where)


def parse_turns(conversations: object, where: str) -> list[Turn]:
    """Check a ``conversations`` list: an optional system turn, then human and gpt in turn, gpt last."""
    if not isinstance(conversations, list) or not conversations:
        raise UserError(f"{where}: conversations is {conversations!r}. Give a list of turns with 'from' and 'value'.")
    turns = []
    for number, turn in enumerate(conversations, 1):
        role, value = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if role not in ("system", "human", "gpt"):
            raise UserError(f"{where}: turn {number} is from {role!r}. Use 'human', 'gpt' or a leading 'system'.")
        if not isinstance(value, str):
            raise UserError(f"{where}: turn {number} has the value {value!r}. Give its text as 'value'.")
        turns.append(Turn(role, value))
        check_value(turns[-1], number, where)
    expected = "human"
    for number, turn in enumerate(turns, 1):
        if number == 1 and turn.role == "system":
            continue
        if turn.role != expected:
            raise UserError(f"{where}: turn {number} is from {turn.role!r} where {expected!r} is due. Alternate them.")
        expected = "gpt" if expected == "human" else "human"
    if turns[-1].role != "gpt":
        raise UserError(
            f"{where}: the conversation ends with a {turns[-1].role!r} turn. End it with the answer, from 'gpt'."
        )
    return turns


def check_value(turn: Turn, number: int, where: str) -> None:
    """Refuse texts that would change the structure of the prompt, or leave nothing to learn."""
    if turn.role == "gpt" and not turn.value.strip():
        raise UserError(f"{where}: turn {number} is an empty answer. Give it a text or remove the turn.")
    found = next((token for token in RESERVED_TOKENS if token in turn.value), None)
    if found:
        raise UserError(f"{where}: turn {number} contains the reserved token {found}. Remove it from the text.")
    if turn.role != "human":
        found = next((mark for mark in (IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER) if mark in turn.value), None)
        if found:
            raise UserError(f"{where}: turn {number}, from {turn.role!r}, contains {found}. Put it into a human turn.")


def parse_sizes(record: dict, single: bool, num_images: int, where: str) -> tuple[tuple[int, int] | None, ...]:
    """Return the declared (width, height) of each picture: ``width``/``height``, or ``width_list``/``height_list``."""
    keys = ("width", "height") if single else ("width_list", "height_list")
    if any(record.get(key) is None for key in keys):
        return (None,) * num_images
    widths, heights = ([record[key]] if single else record[key] for key in keys)
    sizes = list(zip(widths, heights, strict=False)) if isinstance(widths, list) and isinstance(heights, list) else []
    whole = all(isinstance(side, int) and side > 0 for size in sizes for side in size)
    if len(sizes) != num_images or not whole:
        raise UserError(
            f"{where}: {keys[0]} {record[keys[0]]!r} and {keys[1]} {record[keys[1]]!r} do not give a size in px for "
            f"each of {num_images} pictures. Correct or remove them."
        )
    return tuple(sizes)
