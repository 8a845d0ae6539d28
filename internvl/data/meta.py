"""The meta file: which data sets a training mixes, and how each is used."""

import json
from dataclasses import dataclass
from pathlib import Path

from internvl.errors import UserError

KNOWN_KEYS = {"root", "annotation", "data_augment", "repeat_time", "length", "max_dynamic_patch"}


@dataclass(frozen=True)
class DatasetSpec:
    """One entry of a meta file.

    ``repeat_time`` is how often each row is seen in an epoch; its fraction draws that share of the rows at random.
    ``length`` is the declared number of rows over all ``annotations``, ``max_dynamic_patch`` the limit on tiles of
    one picture; None where the entry does not say. ``data_augment`` re-encodes pictures as JPEG at random quality.
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
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise UserError(f"{path}: is not valid JSON ({err}). Correct the file.") from err
    if not isinstance(entries, dict) or not entries:
        raise UserError(
            f"{path}: holds {type(entries).__name__} instead of an object of data set name → entry. "
            "See shell/data/habitat.json for the form."
        )
    return [read_entry(path, name, entry) for name, entry in entries.items()]


def read_entry(path: Path, name: str, entry: object) -> DatasetSpec:
    """Check one entry of the meta file ``path``."""

    def wrong(key: str, what: str, todo: str) -> UserError:
        return UserError(f"{path}:{name}{'.' + key if key else ''}: {what}. {todo}.")

    if not isinstance(entry, dict):
        raise wrong("", f"is {entry!r} instead of an object", "See shell/data/habitat.json for the form")
    for key in ("root", "annotation"):
        if key not in entry:
            raise wrong(key, "is missing", f"Add {key!r}")
    unknown = sorted(set(entry) - KNOWN_KEYS)
    if unknown:
        raise wrong(unknown[0], "is not a key of a data set", f"Use one of {', '.join(sorted(KNOWN_KEYS))}")
    root = entry["root"]
    annotations = entry["annotation"] if isinstance(entry["annotation"], list) else [entry["annotation"]]
    if not isinstance(root, str) or not annotations or not all(isinstance(file, str) for file in annotations):
        raise wrong("annotation", f"is {entry['annotation']!r} (root {root!r})", "Give paths as strings")
    for file in annotations:
        if not Path(file).is_file():
            raise wrong("annotation", f"{file} does not exist", "Put the file there or correct the path")
    if not Path(root or ".").is_dir():
        raise wrong("root", f"{root} is not a folder", "Put the pictures there or correct the path")
    repeat_time = entry.get("repeat_time", 1)
    if isinstance(repeat_time, bool) or not isinstance(repeat_time, (int, float)) or repeat_time <= 0:
        raise wrong("repeat_time", f"is {repeat_time!r}", "Give a number above 0")
    for key in ("length", "max_dynamic_patch"):
        value = entry.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise wrong(key, f"is {value!r}", "Give a whole number from 1, or leave it out")
    if not isinstance(entry.get("data_augment", False), bool):
        raise wrong("data_augment", f"is {entry['data_augment']!r}", "Give true or false")
    return DatasetSpec(
        name=name,
        root=Path(root),
        annotations=tuple(Path(file) for file in annotations),
        data_augment=entry.get("data_augment", False),
        repeat_time=repeat_time,
        length=entry.get("length"),
        max_dynamic_patch=entry.get("max_dynamic_patch"),
    )
