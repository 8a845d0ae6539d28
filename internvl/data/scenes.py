"""Scenes of a data set: which there are, which training and evaluation share, and how rows are split between them."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from internvl.data.annotation import AnnotationFile, parse_line
from internvl.data.problems import RowError, raise_first
from internvl.data.row_groups import RowKey
from internvl.errors import UserError


def scenes_of(files: Sequence[Path], key: RowKey) -> Counter[str]:
    """Return how many rows each scene has.

    Args:
        files: JSONL.
        key: where a row names its scene.

    Raises:
        UserError: rows do not say; names the first few.
    """
    return Counter(scene for file in files for _, scene in _lines(file, key))


def _lines(path: Path, key: RowKey) -> Iterator[tuple[bytes, str]]:
    """Yield each line of a file, as it is, with its scene.

    Raises:
        UserError: rows do not say, behind the last line; names the first few.
    """
    file, problems = AnnotationFile(path), []
    for index in range(len(file)):
        where, line = file.where(index), file.line(index)
        try:
            yield line, key.of(parse_line(line, where), where)
        except RowError as err:
            problems.append(str(err))
    raise_first(problems)


@dataclass(frozen=True)
class SharedScenes:
    """Scenes of training and evaluation, by their rows in each."""

    train: Counter[str]
    evaluation: Counter[str]

    @property
    def both(self) -> list[str]:
        """Scenes that are in both, those with the most evaluation rows first."""
        return sorted(self.train.keys() & self.evaluation.keys(), key=lambda scene: (-self.evaluation[scene], scene))

    def __str__(self) -> str:
        both = self.both
        rows = sum(self.evaluation[scene] for scene in both)
        told = f": {', '.join(both[:5])}{' …' if len(both) > 5 else ''}" if both else ""
        return (
            f"{len(self.train):,} scenes in training, {len(self.evaluation):,} in evaluation, {len(both):,} in both "
            f"with {rows:,} of {self.evaluation.total():,} evaluation rows{told}"
        )


def choose_scenes(rows: Counter[str], share: float, seed: int) -> set[str]:
    """Return the scenes to hold out, taken until they have enough rows, in an order of their names and ``seed`` alone.

    So a scene stays where it is when others are added, as far as the share lets it.

    Args:
        rows: of each scene.
        share: of all rows, at least that of the scenes returned.
        seed: another one holds out other scenes.

    Raises:
        UserError: there is one scene only, or what is asked for would leave none to train on.
    """
    order = sorted(rows, key=lambda scene: hashlib.sha256(f"{seed} {scene}".encode()).digest())
    wanted, chosen, held = math.ceil(share * rows.total()), set[str](), 0
    for scene in order:
        if held >= wanted:
            break
        chosen.add(scene)
        held += rows[scene]
    if len(chosen) == len(rows):
        raise UserError(
            f"--share: {share} of the rows would take all {len(rows)} scenes. Lower it, or name a finer --scene-key."
        )
    return chosen


def split_file(path: Path, key: RowKey, held_out: set[str], train: Path, evaluation: Path) -> tuple[int, int]:
    """Write a file's lines, byte by byte, to ``train`` or, those of scenes ``held_out``, to ``evaluation``.

    Args:
        path: JSONL.
        key: where a row names its scene.
        held_out: scenes that go to ``evaluation``.
        train: file to write.
        evaluation: file to write.

    Returns:
        The lines of both.
    """
    counts = [0, 0]
    with open(train, "wb") as first, open(evaluation, "wb") as second:
        for line, scene in _lines(path, key):
            number = int(scene in held_out)
            (first, second)[number].write(line.rstrip(b"\r") + b"\n")
            counts[number] += 1
    return counts[0], counts[1]
