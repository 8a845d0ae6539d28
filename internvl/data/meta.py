"""The meta file: which data sets a training mixes, and how each is used."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

from internvl.errors import UserError, printable, shorten
from internvl.json_files import read_object

KNOWN_KEYS = {"root", "annotation", "data_augment", "repeat_time", "length", "max_dynamic_patch"}
FORM = "See shell/data/habitat.json for the form"
# The items of an epoch are listed in memory, and the grids of so many tiles are searched one by one: what is far
# beyond any use (the published recipes stay below 10 and 41) would not end.
MAX_REPEAT_TIME = 1000
MAX_TILES = 128


@dataclass(frozen=True)
class DatasetSpec:
    """One entry of a meta file.

    ``repeat_time`` is how often each row is seen in an epoch; its fraction draws that share of the rows at random.
    ``length`` is the declared number of rows over all ``annotations``, ``max_dynamic_patch`` the limit on tiles of
    one image; None where the entry does not say. ``data_augment`` re-encodes images as JPEG at random quality.
    """

    name: str
    root: Path
    annotations: tuple[Path, ...]
    data_augment: bool = False
    repeat_time: float = 1
    length: int | None = None
    max_dynamic_patch: int | None = None


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


def read_entry(path: Path, name: str, entry: object) -> DatasetSpec:
    """Check one entry of the meta file ``path``."""

    def wrong(key: str, what: str, todo: str) -> UserError:
        return UserError(f"{path}:{name}{'.' + key if key else ''}: {what}. {todo}.")

    if not isinstance(entry, dict):
        raise wrong("", f"is {shorten(entry)} instead of an object", FORM)
    if printable(name) != name or not name.strip():
        raise wrong("", f"the name {name!r} is blank, or has characters that cannot be shown", "Choose another name")
    for key in ("root", "annotation"):
        if key not in entry:
            raise wrong(key, "is missing", f"Add {key!r}")
    unknown = sorted(set(entry) - KNOWN_KEYS)
    if unknown:
        raise wrong(unknown[0], "is not a key of a data set", f"Use one of {', '.join(sorted(KNOWN_KEYS))}")
    root = entry["root"]
    annotations = entry["annotation"] if isinstance(entry["annotation"], list) else [entry["annotation"]]
    if not isinstance(root, str) or not annotations or not all(isinstance(file, str) for file in annotations):
        what = f"is {shorten(entry['annotation'])} (root {shorten(root)})"
        raise wrong("annotation", what, "Give paths as strings")
    for file in annotations:
        if not os.path.isfile(file):
            raise wrong("annotation", f"{file} does not exist", "Put the file there or correct the path")
    if not os.path.isdir(root or "."):
        raise wrong("root", f"{root} is not a folder", "Put the images there or correct the path")
    repeat_time = entry.get("repeat_time", 1)
    if (
        isinstance(repeat_time, bool)
        or not isinstance(repeat_time, (int, float))
        or not (0 < repeat_time <= MAX_REPEAT_TIME)
    ):
        raise wrong("repeat_time", f"is {shorten(repeat_time)}", f"Give a number above 0, at most {MAX_REPEAT_TIME}")
    for key, most in (("length", math.inf), ("max_dynamic_patch", MAX_TILES)):
        value = entry.get(key)
        if value is not None and (type(value) is not int or not 1 <= value <= most):
            limit = "" if most == math.inf else f" to {most}"
            raise wrong(key, f"is {shorten(value)}", f"Give a whole number from 1{limit}, or leave it out")
    if not isinstance(entry.get("data_augment", False), bool):
        raise wrong("data_augment", f"is {shorten(entry['data_augment'])}", "Give true or false")
    return DatasetSpec(
        name=name,
        root=Path(root),
        annotations=tuple(Path(file) for file in annotations),
        data_augment=entry.get("data_augment", False),
        repeat_time=repeat_time,
        length=entry.get("length"),
        max_dynamic_patch=entry.get("max_dynamic_patch"),
    )
