"""Values of a large JSON file, one at a time, however many there are."""

from collections.abc import Iterator
from typing import BinaryIO

import ijson
import numpy as np

from internvl.json_files import UTF8_MARK
from internvl.limits import MAX_DEPTH

NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class BrokenJsonError(ValueError):
    """A file is not JSON, from some point on; the message says why, as part of a sentence."""


class ShallowStream:
    """A stream of JSON that is not nested deeper than ``MAX_DEPTH``; ``read`` raises BrokenJsonError if it is.

    A byte order mark in front, as editors on Windows put it there, is not part of it.
    """

    def __init__(self, stream: BinaryIO):
        self.stream = stream
        self.begun = False
        self.depth = 0
        self.in_string = False
        self.held = b""  # a backslash at the end of the last block, which belongs to what follows

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most ``size``; all that are left if it is negative."""
        block = self.stream.read(size)
        if not self.begun and block:
            self.begun = True
            block = block.removeprefix(UTF8_MARK) or self.stream.read(size)
        text = (self.held + block).replace(b"\\\\", b"").replace(b'\\"', b"")
        self.held = b"\\" if text.endswith(b"\\") else b""
        parts = text.split(b'"')
        brackets = b"".join(parts[self.in_string :: 2]).translate(None, NO_BRACKETS)
        self.in_string ^= len(parts) % 2 == 0
        # Opening brackets have the second bit set, closing ones have not.
        depths = self.depth + np.cumsum((np.frombuffer(brackets, np.uint8) & 2).astype(np.int64) - 1)
        if len(depths):
            if depths.max() > MAX_DEPTH:
                raise BrokenJsonError(f"is nested more than {MAX_DEPTH} deep")
            self.depth = int(depths[-1])
        return block


def stream_json(stream: BinaryIO, prefix: str) -> Iterator[object]:
    """Yield the values at ``prefix``, as ijson calls places: ``item`` is each of a list, ``images.item`` of one in it.

    Raises:
        BrokenJsonError: the file breaks off, or is not JSON; what stands before has been yielded.
    """
    try:
        yield from ijson.items(ShallowStream(stream), prefix, use_float=True)
    except BrokenJsonError:
        raise
    except (ijson.JSONError, ValueError) as err:  # ValueError: a lone surrogate, a number of thousands of digits
        raise BrokenJsonError(f"is not valid JSON ({_first_line(err)})") from err


def _first_line(err: Exception) -> str:
    """Return the message of an error of ijson, which adds lines that show the place, some of them as bytes."""
    text = err.args[0] if err.args else ""
    text = text.decode("utf-8", errors="replace") if isinstance(text, bytes) else str(err)
    return text.strip().partition("\n")[0].rstrip(".")
