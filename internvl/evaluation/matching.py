"""What of an answer is compared: the whole text, a letter of a choice, a number, a field of its JSON, or a pattern."""

import json
import re
from dataclasses import dataclass

from internvl.data.balance import field_value
from internvl.data.selecting import check_pattern, found_by
from internvl.errors import UserError

KINDS = ("exact", "choice", "number", "json:FIELD", "regex:PATTERN")
NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+]?\.\d+")
# "B", "(B)", "B.", "b) the door", "Answer: B"
CHOICE = re.compile(
    r"^\W*(?:(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)\s*(?:is|:)?\s*)?\(?([A-Za-z])(?:[).:,]|\s*$)", re.I
)
FENCED = re.compile(r"^\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*$", re.S)
NUMBER_ERROR = 1e-6  # relative, of two numbers that are the same


@dataclass(frozen=True)
class Value:
    """What an answer says: ``text`` to compare, or None and the ``fault`` for which it says nothing."""

    text: str | None
    fault: str = ""


@dataclass(frozen=True)
class Match:
    """How answers are compared: one of :data:`KINDS`, with its field or pattern in ``detail``."""

    kind: str
    detail: str = ""

    @classmethod
    def parse(cls, text: str, flag: str = "--match") -> "Match":
        """Return what ``--match`` says; ``flag`` is its name in messages.

        Raises:
            UserError: it is none of :data:`KINDS`.
        """
        kind, _, detail = text.partition(":")
        plain = kind in ("exact", "choice", "number") and not detail and ":" not in text
        if not plain and not (kind in ("json", "regex") and detail):
            raise UserError(f"{flag}: is {text!r}. Give {', '.join(KINDS[:-1])} or {KINDS[-1]}.")
        if kind == "regex":
            check_pattern(detail, flag)
        return cls(kind, detail)

    def __str__(self) -> str:
        return f"{self.kind}:{self.detail}" if self.detail else self.kind

    def value(self, answer: str) -> Value:
        """Return what an answer says.

        ``exact``: its text with blanks joined, in small letters, without a full stop at the end. ``choice``: the
        letter it begins with. ``number``: the first one in it. ``json``: the field, also where the JSON stands in a
        fence of backticks. ``regex``: the first group, or all that is found.
        """
        if self.kind == "exact":
            return Value(" ".join(answer.split()).casefold().removesuffix("."))
        if self.kind == "choice":
            found = CHOICE.search(answer.strip())
            return Value(found[1].upper()) if found else Value(None, "begins with no letter of a choice")
        if self.kind == "number":
            found = NUMBER.search(answer)
            return Value(_number(found[0])) if found else Value(None, "has no number")
        if self.kind == "regex":
            text = found_by(self.detail, answer)
            return Value(None, "does not hold the pattern") if text is None else Value(text)
        return self._field(answer)

    def _field(self, answer: str) -> Value:
        fenced = FENCED.match(answer)
        text = fenced[1] if fenced else answer
        try:
            content = json.loads(text)
        except ValueError as err:
            return Value(
                None, "is not JSON" if not text.lstrip().startswith("{") else f"is broken JSON ({_short(err)})"
            )
        if not isinstance(content, dict):
            return Value(None, "is JSON, but no object")
        value = field_value(text, self.detail)
        return Value(None, f"has no field {self.detail!r}") if value is None else Value(value)

    def is_right(self, value: Value, references: list[Value]) -> bool:
        """Return whether a value is one of the references'; numbers may differ by rounding."""
        if value.text is None:
            return False
        if self.kind == "number":
            own = float(value.text)
            wanted = [float(reference.text) for reference in references if reference.text is not None]
            return any(abs(own - number) <= NUMBER_ERROR * max(abs(own), abs(number)) for number in wanted)
        return value.text in {reference.text for reference in references}


def _number(text: str) -> str:
    """Return a number as Python writes it, so that 1,000 and 1000.0 are one."""
    value = float(text.replace(",", ""))
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def _short(error: ValueError) -> str:
    """Return why JSON could not be read, without the place, so that equal faults are counted together."""
    return getattr(error, "msg", str(error)).split(":")[0]
