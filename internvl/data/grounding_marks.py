"""ms-swift's grounding rows: boxes that stand beside a text are filled in for the marks in it."""

import json
import re
from pathlib import Path

from internvl.data.boxes import SCALE, format_boxes
from internvl.data.media import read_image_size
from internvl.data.problems import RowError
from internvl.errors import shorten

REF, BOX = "<ref-object>", "<bbox>"
MARKS = re.compile(f"{re.escape(REF)}|{re.escape(BOX)}")
UNITS = ("real", "norm1", "norm1000")  # pixels, fractions, and thousandths of the image's sides


def fill_in_marks(row: dict, where: str, root: Path) -> dict:
    """Return a row with ``<ref>name</ref><box>[[x1, y1, x2, y2]]</box>`` in place of its marks, without ``objects``.

    Args:
        row: a converted row; ``objects`` holds ``ref`` (names), ``bbox`` (boxes, each of four numbers) and
            ``bbox_type``, in the order of the marks over all turns.
        where: file and line, for messages.
        root: where the path of its image starts: boxes in pixels are relative to its size.

    Raises:
        RowError: marks and objects differ in number, or a box is none.
    """
    objects = row.get("objects")
    if not objects:
        return row
    if not isinstance(objects, dict):
        what = f"objects is {shorten(objects, 100)}, not names and boxes by mark"
        todo = 'Write {"ref": [names], "bbox": [boxes]}, as ms-swift reads today'
        raise RowError(where, "objects", what, todo)
    names, boxes = list(objects.get("ref") or []), list(objects.get("bbox") or [])
    unit = objects.get("bbox_type") or "real"
    unknown = sorted(objects.keys() - {"ref", "bbox", "bbox_type", "image_id", "width", "height"})
    if unit not in UNITS or unknown:
        what = f"objects has {f'the key {unknown[0]!r}' if unknown else f'bbox_type {shorten(unit, 40)}'}"
        raise RowError(where, "objects", what, f"Use ref, bbox and bbox_type, one of {', '.join(UNITS)}")
    marks = [mark for turn in row["conversations"] for mark in MARKS.findall(str(turn.get("value")))]
    counts = (marks.count(REF), marks.count(BOX))
    if counts != (len(names), len(boxes)):
        what = f"has {counts[0]} {REF} and {counts[1]} {BOX} for {len(names)} names and {len(boxes)} boxes"
        raise RowError(where, "objects", what, "Make the counts equal")
    sizes = [_box_size(row, objects, unit, number, where, root) for number in range(len(boxes))]
    rest = iter([_box_text(box, size, where) for box, size in zip(boxes, sizes, strict=True)])
    named = iter(names)

    def replacement(mark: re.Match) -> str:
        return f"<ref>{next(named)}</ref>" if mark[0] == REF else next(rest)

    turns = [
        {**turn, "value": MARKS.sub(replacement, turn["value"])} if isinstance(turn.get("value"), str) else turn
        for turn in row["conversations"]
    ]
    return {**{key: value for key, value in row.items() if key != "objects"}, "conversations": turns}


def _box_size(row: dict, objects: dict, unit: str, number: int, where: str, root: Path) -> tuple[float, float]:
    """Return the (width, height) that a box's numbers are relative to.

    Raises:
        RowError: they are px of an image that cannot be read.
    """
    if unit != "real":
        return (1, 1) if unit == "norm1" else (SCALE, SCALE)
    images = row.get("image")
    images = images if isinstance(images, list) else [images]
    indices = objects.get("image_id") or [0] * (number + 1)
    index = indices[number] if isinstance(indices, list) and number < len(indices) else 0
    if not isinstance(index, int) or not 0 <= index < len(images) or not isinstance(images[index], str):
        what = f"box {number + 1} is in px of image {shorten(index, 20)}, which the row does not have"
        raise RowError(where, "objects", what, "Correct image_id, or give bbox_type norm1000")
    try:
        return read_image_size(root / images[index], where)
    except RowError as err:
        what = f"has boxes in px, and the size of {root / images[index]} is not known ({err.reason})"
        raise RowError(where, "objects", what, "Pass --root FOLDER, where the paths start") from err


def _box_text(box: object, size: tuple[float, float], where: str) -> str:
    """Return a box, four numbers relative to ``size``, as the model writes it."""
    if not isinstance(box, list) or len(box) != 4 or any(type(value) not in (int, float) for value in box):
        what = f"the box {shorten(box, 60)} is not of four numbers"
        raise RowError(where, "objects", what, "Give x1, y1, x2, y2; points and polygons have no form here")
    try:
        return format_boxes(None, [(box[0], box[1], box[2], box[3])], *size)
    except ValueError as err:
        raise RowError(where, "objects", f"the box {json.dumps(box)}: {err}", "Correct it") from err
