"""The text of an annotation file as bytes in memory that processes share: mapped, and if need be decompressed before.

A file compressed with gzip has no random access. Its text is written to the user's cache once, under the hash of the
compressed file, and mapped from there.
"""

import gzip
import hashlib
import logging
import os
import time
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

import numpy as np

from internvl.data.user_cache import user_cache
from internvl.errors import UserError
from internvl.limits import MAX_TEXT_BYTES

logger = logging.getLogger(__name__)
GZIP = b"\x1f\x8b"
BLOCK_BYTES = 1 << 24
# Texts that nobody has used for so long are removed when another one is written.
KEPT_SECONDS = 30 * 24 * 3600


def map_text(path: Path) -> np.ndarray:
    """Return the bytes of an annotation file's text, uint8.

    Raises:
        UserError: it cannot be read, is damaged, or larger than ``MAX_TEXT_BYTES`` when decompressed.
    """
    try:
        if path.stat().st_size == 0:
            return np.empty(0, np.uint8)
        with open(path, "rb") as stream:
            if stream.read(len(GZIP)) != GZIP:
                return np.memmap(path, mode="r")
            stream.seek(0)
            return _decompressed(path, stream)
    except OSError as err:
        raise UserError(f"{path}: cannot be read: {err.strerror or err}. Check the path.") from err


def _decompressed(path: Path, stream: BufferedReader) -> np.ndarray:
    """Return the text of a gzip file: mapped from the cache, or in memory where nothing can be kept."""
    folder = user_cache("annotations", f"The text of {path}")
    if folder is None:
        return np.frombuffer(b"".join(_blocks(path, stream)), np.uint8)
    kept = folder / f"{hashlib.file_digest(stream, 'sha256').hexdigest()}.jsonl"
    stream.seek(0)
    try:
        if not kept.is_file():
            _keep(path, stream, kept)
        os.utime(kept)
    except OSError as err:
        logger.warning("The text of %s cannot be kept in %s (%s): it takes memory instead.", path, folder, err)
        stream.seek(0)
        return np.frombuffer(b"".join(_blocks(path, stream)), np.uint8)
    return np.memmap(kept, mode="r") if kept.stat().st_size else np.empty(0, np.uint8)


def _keep(path: Path, stream: BufferedReader, kept: Path) -> None:
    """Write the text beside its place and rename it, so that a reader finds all of it or nothing."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    for other in kept.parent.glob("*.jsonl"):
        if time.time() - other.stat().st_mtime > KEPT_SECONDS:
            other.unlink(missing_ok=True)
    beside = kept.with_suffix(f".{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as out:
            for block in _blocks(path, stream):
                out.write(block)
        beside.replace(kept)
    finally:
        beside.unlink(missing_ok=True)


def _blocks(path: Path, stream: BufferedReader) -> Iterator[bytes]:
    """Yield the text of a gzip file in blocks.

    Raises:
        UserError: it is damaged, cut off, or too large.
    """
    size = 0
    try:
        with gzip.GzipFile(fileobj=stream) as text:
            while block := text.read(BLOCK_BYTES):
                size += len(block)
                if size > MAX_TEXT_BYTES:
                    raise UserError(
                        f"{path}: has more than {MAX_TEXT_BYTES:,} bytes of text. Divide it into several files, and "
                        "list them in the meta file."
                    )
                yield block
    except (EOFError, gzip.BadGzipFile, zlib.error) as err:
        raise UserError(f"{path}: is a damaged gzip file ({err}). Copy or compress it again.") from err
