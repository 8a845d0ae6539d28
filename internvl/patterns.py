"""File names with wildcards in a meta file, like ``part-*.jsonl``: all files that they fit. Standard library only."""

import glob
import os

WILDCARDS = "*?["


def expand_pattern(name: str) -> list[str]:
    """Return the files that a name stands for, sorted, maybe none: itself, unless it has wildcards and is no file."""
    if not any(character in name for character in WILDCARDS) or os.path.isfile(name):
        return [name]
    return sorted(glob.glob(name, recursive=True))
