"""Boxes in texts: the model's ``<ref>name</ref><box>[[x1, y1, x2, y2]]</box>``, in thousandths of the image.

The model card of InternVL gives coordinates as whole numbers from 0 to 1000: x in thousandths of the width, y in
thousandths of the height, (x1, y1) the upper left corner and (x2, y2) the lower right one.
"""

import json
import re
from typing import NamedTuple, cast

SCALE = 1000
TAGS = re.compile(r"<(/?)(ref|box)>")
# A name ends at its own </ref>: one without boxes must not run on to the boxes of the next.
MENTION = re.compile(r"(?:<ref>(?P<label>(?:(?!</ref>).)*)</ref>\s*)?<box>(?P<boxes>.*?)</box>", re.DOTALL)

Box = tuple[int, int, int, int]


class Mention(NamedTuple):
    """A thing a text names, and its boxes in thousandths; ``label`` is None for boxes without a name."""

    label: str | None
    boxes: list[Box]


def format_boxes(
    label: str | None, boxes: list[tuple[float, float, float, float]], width: float, height: float
) -> str:
    """Return the model's text for the boxes of one thing in an image.

    Coordinates are rounded to thousandths, and those outside the image moved to its edge.

    Example: ``format_boxes("cup", [(0, 0, 320, 240)], 640, 480)`` is ``<ref>cup</ref><box>[[0, 0, 500, 500]]</box>``.

    Args:
        label: the thing's name; None for boxes without one.
        boxes: (x1, y1, x2, y2) of each in px, the upper left and the lower right corner.
        width: of the image, in px.
        height: of the image, in px.

    Raises:
        ValueError: the text would not be of the model's form (no boxes, corners the wrong way round, tags in the
            label), or the image has no size.
    """
    if width <= 0 or height <= 0:
        raise ValueError(f"the image has the size {width} × {height}")
    sides = (width, height, width, height)
    scaled = [
        [min(SCALE, max(0, round(value * SCALE / side))) for value, side in zip(box, sides, strict=True)]
        for box in boxes
    ]
    name = "" if label is None else f"<ref>{label}</ref>"
    text = f"{name}<box>{scaled}</box>"
    wrong = check_boxes(text)
    if wrong:
        raise ValueError(wrong)
    return text


def parse_boxes(text: str) -> list[Mention]:
    """Return what a text mentions with boxes, in its order.

    Raises:
        ValueError: it has boxes or references that are not of the model's form.
    """
    wrong = check_boxes(text)
    if wrong:
        raise ValueError(wrong)
    return [
        Mention(match["label"], [tuple(box) for box in cast(list, _read_list(match["boxes"]))])
        for match in MENTION.finditer(text)
    ]


def to_pixels(box: Box, width: int, height: int) -> tuple[float, float, float, float]:
    """Return a box in thousandths as px of a ``width`` × ``height`` image."""
    x1, y1, x2, y2 = box
    return x1 * width / SCALE, y1 * height / SCALE, x2 * width / SCALE, y2 * height / SCALE


def check_boxes(text: str) -> str | None:
    """Return what is wrong with the first malformed reference or box of a text, or None."""
    if "<ref" not in text and "<box" not in text and "</" not in text:
        return None
    opened = None
    for tag in TAGS.finditer(text):
        closes, name = tag.groups()
        if not closes and opened:
            return f"<{name}> stands inside <{opened}>"
        if closes and opened != name:
            return f"</{name}> closes nothing"
        opened = None if closes else name
    if opened:
        return f"<{opened}> is not closed"
    return next(filter(None, (_check_list(match["boxes"]) for match in MENTION.finditer(text))), None)


def _check_list(content: str) -> str | None:
    """Return what is wrong with the text between <box> and </box>, or None."""
    shown = content if len(content) <= 60 else content[:60] + "…"
    boxes = _read_list(content)
    if not isinstance(boxes, list) or not boxes:
        return f"the box {shown} is not a list of boxes"
    for box in boxes:
        if not isinstance(box, list) or len(box) != 4 or not all(type(value) is int for value in box):
            return f"the box {shown} is not of four whole numbers"
        if not all(0 <= value <= SCALE for value in box):
            return f"the box {shown} has coordinates outside 0 to {SCALE}"
        if box[0] > box[2] or box[1] > box[3]:
            return f"the box {shown} has its corners the wrong way round"
    return None


def _read_list(content: str) -> object:
    """Return the JSON value a text spells, or None if it spells none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
