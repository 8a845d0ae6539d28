"""Where a file that is not there may be: under a name that differs in form, or one folder higher or deeper."""

import os
import unicodedata
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

RENAME = "Write it as the file is called, or rename the file"
MOVE = "Correct the data set's root, or the paths in its rows"


class Similar(NamedTuple):
    """A file that a name may mean: its path, how the name differs from it, and what to do."""

    path: str
    difference: str
    todo: str


def find_similar(path: Path) -> Similar | None:
    """Return the file that the path of a missing one may mean, None if there is none.

    Looked for: backslashes, percent signs of an address, spaces around the name, another case or Unicode form, a
    folder named twice, and a root that is one folder too high or too deep.
    """
    folder = next((parent for parent in path.parents if parent.is_dir()), None)
    if folder is None:
        return None
    name = path.relative_to(folder).as_posix()
    forms = (
        (name.replace("\\", "/"), "it has backslashes"),
        (unquote(name), "it is written as in an address"),
        (name.strip(), "it has spaces around it"),
    )
    for form, difference in forms:
        if form != name and (folder / form).is_file():
            return Similar(str(folder / form), difference, RENAME)
    parts = PurePosixPath(name.replace("\\", "/")).parts
    matched = _match_parts(folder, parts)
    if matched and matched != name:
        same_letters = unicodedata.normalize("NFC", matched) == unicodedata.normalize("NFC", name)
        difference = "the Unicode form of the name differs" if same_letters else "upper and lower case differ"
        return Similar(str(folder / matched), difference, RENAME)
    return _find_moved(folder, parts)


def _find_moved(folder: Path, parts: tuple[str, ...]) -> Similar | None:
    """Return a file with one folder less or more on its path below ``folder`` than ``parts``."""
    shorter = folder.joinpath(*parts[1:])
    if len(parts) > 1 and shorter.is_file():
        return Similar(str(shorter), f"without the folder {parts[0]!r}", MOVE)
    for name in subfolders(str(folder)):
        deeper = folder.joinpath(name, *parts)
        if deeper.is_file():
            return Similar(str(deeper), f"in the folder {name!r}", MOVE)
    higher = folder.parent.joinpath(*parts)
    if higher.is_file():
        return Similar(str(higher), "one folder higher", MOVE)
    return None


def _match_parts(root: Path, parts: tuple[str, ...]) -> str | None:
    """Return the path below ``root`` that has these parts but for case and Unicode form, None if there is none."""
    found: list[str] = []
    for part in parts:
        folder = root.joinpath(*found)
        if (folder / part).exists():
            found.append(part)
            continue
        same = entries(str(folder)).get(folded(part))
        if same is None:
            return None
        found.append(same)
    return "/".join(found) if root.joinpath(*found).is_file() else None


def folded(name: str) -> str:
    """Return a name without the differences of case and of Unicode form."""
    return unicodedata.normalize("NFC", name).casefold()


@lru_cache(maxsize=64)
def entries(folder: str) -> dict[str, str]:
    """Return folded name → name of what is in a folder; read once, since a data set lacks many files of one."""
    try:
        return {folded(name): name for name in os.listdir(folder)}
    except OSError:
        return {}


@lru_cache(maxsize=64)
def subfolders(folder: str) -> list[str]:
    """Return the folders in a folder."""
    try:
        with os.scandir(folder) as found:
            return sorted(entry.name for entry in found if entry.is_dir())
    except OSError:
        return []
