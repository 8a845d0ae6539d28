"""What rows belong together by, such as their scene or episode: a field of the row, or a part of its path."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from internvl.data.annotation import path_of
from internvl.data.problems import RowError
from internvl.data.selecting import check_pattern, found_by, nested_value
from internvl.errors import UserError

PATH = "path:"


@dataclass(frozen=True)
class RowKey:
    """Where a row names its group.

    ``field`` is a key of the row (``scene_id``, or ``info.scene`` for one inside another). Otherwise it is found in
    the path of the first image or video: ``part`` is the number of a folder or file name in it, from 0 or, negative,
    from its end, and ``pattern`` a regular expression whose first group counts, or all it finds.
    """

    text: str
    field: str | None = None
    part: int | None = None
    pattern: str | None = None

    @classmethod
    def parse(cls, text: str, flag: str) -> "RowKey":
        """Return what ``FIELD``, ``path:N`` or ``path:REGEX`` says; ``flag`` is the flag's name for messages.

        Raises:
            UserError: it is none of these.
        """
        if not text.startswith(PATH):
            if not text.strip():
                raise UserError(f"{flag}: is empty. Give a key of the rows, path:N or path:REGEX.")
            return cls(text, field=text)
        rest = text.removeprefix(PATH)
        if re.fullmatch(r"-?\d{1,3}", rest):
            return cls(text, part=int(rest))
        check_pattern(rest, flag)
        if not rest:
            raise UserError(f"{flag}: path: comes without a number or regular expression, such as path:0.")
        return cls(text, pattern=rest)

    def of(self, record: object, where: str) -> str:
        """Return the group of a row, an annotation object as it is written; ``where`` is for messages.

        Raises:
            RowError: the row does not say.
        """
        if self.field is not None:
            try:
                value = nested_value(record, self.field)
            except KeyError:
                value = None
            if value is None or isinstance(value, (dict, list)):
                what = f"has no {self.field!r}, which rows are grouped by"
                raise RowError(where, "no group", what, "Add the key, or name another one")
            return str(value)
        path = _first_path(record)
        if path is None:
            what = f"has no image or video, and rows are grouped by {self.text}"
            raise RowError(where, "no group", what, "Group rows by a key of theirs")
        if self.part is not None:
            parts = PurePosixPath(path).parts
            if not -len(parts) <= self.part < len(parts):
                raise RowError(where, "no group", f"the path {path!r} has no part {self.part}", "Give another number")
            return parts[self.part]
        found = found_by(self.pattern or "", path)
        if found is None:
            what = f"the path {path!r} does not hold {self.pattern!r}"
            raise RowError(where, "no group", what, "Give another regular expression")
        return found


def _first_path(record: object) -> str | None:
    """Return the path of a row's first image, or of its video."""
    fields = record if isinstance(record, dict) else {}
    named = fields.get("image") or fields.get("video")
    first = named[0] if isinstance(named, list) and named else named
    path = path_of(first)
    return path.replace("\\", "/") if isinstance(path, str) else None
