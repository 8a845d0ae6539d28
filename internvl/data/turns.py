"""The turns of an annotation row: who says what, in which order, and what no text may hold."""

import re

from internvl.data.boxes import check_boxes
from internvl.data.problems import RowError
from internvl.data.row_keys import FOREIGN_MARKS, check_meaningful
from internvl.errors import shorten
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
# A "<" that begins something else than a mark of an image or a video.
OTHER_MARK = re.compile(f"<(?!{re.escape(IMAGE_PLACEHOLDER[1:])}|{re.escape(VIDEO_PLACEHOLDER[1:])})")


def parse_turns(conversations: object, where: str) -> list[Turn]:
    """Check a ``conversations`` list: an optional system turn, then human and gpt in turn, gpt last.

    Raises:
        RowError: it is not such a list; names the turn and what is wrong with it.
    """
    if not isinstance(conversations, list) or not conversations:
        what = f"conversations is {shorten(conversations)}"
        raise RowError(where, "conversations", what, "Give a list of turns with 'from' and 'value'")
    turns = []
    for number, turn in enumerate(conversations, 1):
        role, value = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if role not in ("system", "human", "gpt"):
            what, todo = f"turn {number} is from {shorten(role)}", "Use 'human', 'gpt' or a leading 'system'"
            if role in ("user", "assistant"):
                todo += "; python tools/convert_annotations.py FILE OUT.jsonl --from sharegpt does"
            raise RowError(where, "role", what, todo)
        if not isinstance(value, str):
            what = f"turn {number} has the value {shorten(value)}"
            raise RowError(where, "turn without text", what, "Give its text as 'value'")
        if len(turn) > 2:
            check_meaningful(turn, where, of=f"turn {number} ")
        turns.append(Turn(role, value))
        check_value(turns[-1], number, where)
    _check_order(turns, where)
    return turns


def _check_order(turns: list[Turn], where: str) -> None:
    """Refuse conversations that do not alternate human and gpt, or do not end with an answer."""
    expected = "human"
    first = 2 if turns[0].role == "system" else 1
    for number, turn in enumerate(turns, 1):
        if number < first:
            continue
        if turn.role == "gpt" and number == first:
            what = f"turn {number}, the first, is an answer (some loaders drop it)"
            raise RowError(where, "order of turns", what, "Remove it, or put its question in front")
        if turn.role != expected:
            what = f"turn {number} is from {turn.role!r} where {expected!r} is due"
            raise RowError(where, "order of turns", what, "Alternate them")
        expected = "gpt" if expected == "human" else "human"
    if turns[-1].role != "gpt":
        what = f"the conversation ends with a {turns[-1].role!r} turn"
        raise RowError(where, "no answer at the end", what, "End it with the answer, from 'gpt'")


def check_value(turn: Turn, number: int, where: str) -> None:
    """Refuse texts that would change the structure of the prompt, leave nothing to learn, or cannot be encoded."""
    if turn.role == "gpt" and not turn.value.strip():
        what = f"turn {number} is an empty answer"
        raise RowError(where, "empty answer", what, "Give it a text or remove the turn")
    if "<" in turn.value:
        _check_marks(turn, number, where)
    if not turn.value.isascii():
        try:
            turn.value.encode("utf-8")
        except UnicodeEncodeError as err:
            what = f"turn {number} has a lone surrogate ({turn.value[err.start]!r}) at position {err.start}"
            raise RowError(where, "a lone surrogate", what, "Write the whole character, or remove it") from err


def _check_marks(turn: Turn, number: int, where: str) -> None:
    """Refuse reserved tokens, image and video marks outside human turns, and boxes that are none."""
    if turn.role == "human" and not OTHER_MARK.search(turn.value):
        return  # <image> and <video> alone
    found = next((mark for mark in FOREIGN_MARKS if mark in turn.value), None)
    if found:
        what = (
            f"turn {number} contains {found}, a mark that another tool fills in and that would be trained on as text"
        )
        todo = "Fill it in (tools/convert_annotations.py --from messages does, for boxes), or remove it"
        raise RowError(where, f"mark {found}", what, todo)
    found = next((token for token in RESERVED_TOKENS if token in turn.value), None)
    if found:
        what = f"turn {number} contains the reserved token {found}"
        raise RowError(where, "reserved token", what, "Remove it from the text")
    if turn.role != "human":
        found = next((mark for mark in (IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER) if mark in turn.value), None)
        if found:
            what = f"turn {number}, from {turn.role!r}, contains {found}"
            raise RowError(where, "mark outside a question", what, "Put it into a human turn")
    wrong = check_boxes(turn.value)
    if wrong:
        todo = "Write <ref>name</ref><box>[[x1, y1, x2, y2]]</box> with whole numbers from 0 to 1000"
        raise RowError(where, "box", f"turn {number}: {wrong}", todo)


def rejected_answer(record: dict, turns: list[Turn], where: str) -> str | None:
    """Return the worse text of the last answer, which a row for preferences has beside it; None without.

    Raises:
        RowError: it is none, or the same as the answer.
    """
    text = record.get("rejected")
    if text is None:
        return None
    form = "Give the text of a worse answer to the last question, or remove the key"
    if not isinstance(text, str) or not text.strip():
        raise RowError(where, "key 'rejected'", f"rejected is {shorten(text)}", form)
    if text.strip() == turns[-1].value.strip():
        raise RowError(where, "key 'rejected'", "rejected is the same text as the last answer", form)
    check_value(Turn("gpt", text), len(turns), where)
    return text
