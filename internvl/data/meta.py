"""The meta file: which data sets a training mixes, and how each is used."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from internvl.data.balance import Balance, BalanceEntry
from internvl.errors import UserError, printable
from internvl.json_files import read_object
from internvl.limits import MAX_REPEAT_TIME, MAX_TILES
from internvl.patterns import expand_pattern
from internvl.schema import validate

FORM = "See shell/data/habitat.json for the form"


class MetaEntry(BaseModel):
    """One entry of a meta file, as it is written."""

    model_config = ConfigDict(extra="forbid")

    root: Annotated[str, Field(description="the folder that the paths of images start from, in quotes")]
    annotation: Annotated[
        str | Annotated[list[str], Field(min_length=1, fail_fast=True)],
        Field(description="the path of a JSONL file or a pattern of several, in quotes, or a list of them"),
    ]
    data_augment: bool = False
    # A whole number stays one: it is part of the record that a continued training is compared with.
    repeat_time: Annotated[
        int | float, Field(gt=0, le=MAX_REPEAT_TIME, description=f"a number above 0, at most {MAX_REPEAT_TIME:,}")
    ] = 1
    length: Annotated[int, Field(ge=1)] | None = None
    max_dynamic_patch: Annotated[int, Field(ge=1, le=MAX_TILES)] | None = None
    balance: BalanceEntry | None = None


ENTRY = TypeAdapter(MetaEntry)


@dataclass(frozen=True)
class DatasetSpec:
    """One entry of a meta file.

    ``repeat_time`` is how often each row is seen in an epoch; its fraction draws that share of the rows at random.
    ``length`` is the declared number of rows over all ``annotations``, ``max_dynamic_patch`` the limit on tiles of
    one image; None where the entry does not say. ``data_augment`` re-encodes images as JPEG at random quality.
    ``balance`` says how often kinds of answers count, and ``place`` is the entry's ``file:key``.
    """

    name: str
    root: Path
    annotations: tuple[Path, ...]
    data_augment: bool = False
    repeat_time: float = 1
    length: int | None = None
    max_dynamic_patch: int | None = None
    balance: Balance | None = field(default=None, repr=False)
    place: str = field(default="", repr=False)

    def as_entry(self, annotations: Sequence[Path], length: int) -> dict:
        """Return the entry with other annotation files, of ``length`` rows together."""
        names = [str(path) for path in annotations]
        return {
            "root": str(self.root),
            "annotation": names if len(names) > 1 else names[0],
            "data_augment": self.data_augment,
            "repeat_time": self.repeat_time,
            "length": length,
            **({"max_dynamic_patch": self.max_dynamic_patch} if self.max_dynamic_patch else {}),
            **({"balance": self.balance.as_entry()} if self.balance else {}),
        }


def read_meta(path: str | Path) -> list[DatasetSpec]:
    """Read a meta file: a JSON object of data set name → entry.

    Relative paths in it are taken from the working directory, as launchers set it (the repository root).

    Raises:
        UserError: the file is missing, is not such an object, or names files that do not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such meta file. Set META_PATH (or --meta_path) to an existing one.")
    entries = read_object(path, FORM)
    if not entries:
        raise UserError(f"{path}: names no data set. {FORM}.")
    return [read_entry(path, name, entry) for name, entry in entries.items()]


def read_entry(path: Path, name: str, content: object) -> DatasetSpec:
    """Check one entry of the meta file ``path``.

    Raises:
        UserError: its name, a key or a value is wrong, or it names a file or folder that does not exist.
    """
    if printable(name) != name or not name.strip():
        raise UserError(
            f"{path}:{name}: the name {name!r} is blank, or has characters that cannot be shown. Choose another name."
        )
    entry = validate(ENTRY, content, path, name)
    names = [entry.annotation] if isinstance(entry.annotation, str) else entry.annotation
    annotations = []
    for pattern in names:
        found = expand_pattern(pattern)
        if not found:
            raise UserError(
                f"{path}:{name}.annotation: no file fits {pattern}. Put them there or correct the pattern."
            )
        annotations += found
    for file in annotations:
        if not os.path.isfile(file):
            raise UserError(
                f"{path}:{name}.annotation: {file} does not exist. Put the file there or correct the path."
            )
    if not os.path.isdir(entry.root or "."):
        raise UserError(f"{path}:{name}.root: {entry.root} is not a folder. Put the images there or correct the path.")
    return DatasetSpec(
        name=name,
        root=Path(entry.root),
        annotations=tuple(Path(file) for file in annotations),
        balance=Balance.of(entry.balance, f"{path}:{name}.balance") if entry.balance else None,
        place=f"{path}:{name}",
        **entry.model_dump(exclude={"root", "annotation", "balance"}),
    )
