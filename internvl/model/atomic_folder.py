"""Write a folder completely or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from internvl.errors import UserError


def check_free(out: Path, *, overwrite: bool) -> None:
    """Refuse to write to a folder that holds something already, unless it may be replaced.

    Raises:
        UserError: ``out`` is not empty, or a file.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file. Name a folder to write to.")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise UserError(f"{out}: is not empty. Name another folder, or pass --overwrite to replace it.")


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a folder beside ``out`` to write to; it takes the place of ``out`` at the end, or goes on an error.

    Its files are on disk before it is renamed, and an earlier ``out`` is moved aside whole: whenever the process or
    the machine dies, what is called ``out`` is complete, or absent.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        yield partial
        os.chmod(partial, 0o755)  # mkdtemp makes a private folder
        for file in partial.rglob("*"):
            sync(file)
        earlier = partial.with_suffix(".earlier")
        if out.exists():
            os.rename(out, earlier)
        os.rename(partial, out)
        sync(out.parent)
        shutil.rmtree(earlier, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
