"""Answers on disk as they come: an evaluation that was killed goes on where it stopped."""

import hashlib
import json
import os
import shutil
from pathlib import Path


class AnswerLog:
    """Captions that are done, by image id, in a folder that several processes append to, each to its own file.

    The folder is named after ``settings``, everything that decides what the answers are: another evaluation never
    finds them. ``rank`` is this process's number.
    """

    def __init__(self, parent: Path, settings: dict, *, rank: int = 0):
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        self.folder = parent / f"unfinished-{key[:16]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.done: dict[int | str, str] = {}
        for file in sorted(self.folder.glob("answers_*.jsonl")):
            self._read(file)
        self._stream = open(self.folder / f"answers_{rank}.jsonl", "ab")  # noqa: SIM115 - open as long as the log
        if self._stream.tell():
            self._stream.write(b"\n")  # what follows must not join a line that a kill left unfinished

    def _read(self, file: Path) -> None:
        """Take the complete lines of a file; the last one may be cut off, and is answered again."""
        for line in file.read_bytes().split(b"\n"):
            try:
                image_id, caption = json.loads(line)
            except ValueError:  # empty, or cut off: JSON and the two values of it alike
                continue
            self.done[image_id] = caption

    def add(self, answers: dict[int | str, str]) -> None:
        """Put answers on disk; they are there when this returns."""
        lines = (json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers.items())
        self._stream.write("".join(lines).encode())
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.done |= answers

    def close(self) -> None:
        self._stream.close()

    def remove(self) -> None:
        """Delete the folder: the result is written, and holds all there was."""
        self.close()
        shutil.rmtree(self.folder)
