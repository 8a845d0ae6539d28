"""A METEOR that starts at once, for tests in which its value is not the point.

Its program reads a table of 61 MB of paraphrases each time, which takes eight seconds, and twenty tests start it.
Here pycocoevalcap is the installed one but for that table, which is empty: exact words, stems and synonyms match.
Tests of METEOR's own values take the fixture ``real_meteor``.
"""

import gzip
import importlib.util
import os
import shutil
import sys
from pathlib import Path

METEOR = Path("pycocoevalcap") / "meteor"
TABLE = "paraphrase-en.gz"


def installed_meteor() -> Path | None:
    """Return the folder of METEOR as it is installed; None without pycocoevalcap."""
    spec = importlib.util.find_spec("pycocoevalcap")
    locations = spec.submodule_search_locations if spec else None
    return Path(next(iter(locations))) / "meteor" if locations else None


def write_quick_meteor(installed: Path, folder: Path) -> None:
    """Write a ``pycocoevalcap`` to ``folder``: links to the installed one, and a METEOR with an empty table."""
    package, quick = installed.parent, folder / METEOR
    quick.mkdir(parents=True)
    for entry in package.iterdir():
        if entry.name not in ("meteor", "__pycache__"):
            (folder / METEOR.parent / entry.name).symlink_to(entry)
    for entry in installed.iterdir():
        if entry.suffix == ".jar":
            shutil.copy(entry, quick)  # it looks for its table beside itself
        elif entry.name not in ("data", "__pycache__"):
            (quick / entry.name).symlink_to(entry)
    (quick / "data").mkdir()
    (quick / "data" / TABLE).write_bytes(gzip.compress(b""))


def use_quick_meteor(folder: Path) -> None:
    """Let this process, and those that it starts, import a quick METEOR written to ``folder``."""
    installed = installed_meteor()
    if installed is None:
        return
    write_quick_meteor(installed, folder)
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    importlib.invalidate_caches()
