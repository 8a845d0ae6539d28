"""What a check is: a function with a time limit, the figures it notes as it goes, and how it fails or is skipped."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = REPOSITORY / "pretrained" / "InternVL2-Tiny"
STAGES = ("right", "train", "generate", "compare")


class Skipped(Exception):
    """A check cannot run here; the text says why."""


class Failed(Exception):
    """A check found what is not as it should be."""


class Figures(dict):
    """Figures of a check, on disk as soon as they are known: a check that is killed keeps what it had."""

    def __init__(self, file: Path):
        super().__init__()
        self.file = file

    def __setitem__(self, name: str, value) -> None:
        super().__setitem__(name, value)
        self.file.write_text(json.dumps(self), encoding="utf-8")


@dataclass(frozen=True)
class Setting:
    """Where a check runs: on a GPU at the size of InternVL2-2B, or as a rehearsal at tiny size on the CPU.

    ``work`` is a folder that the checks of all stages share: the checkpoint that one has made, others read.
    """

    work: Path
    rehearsal: bool

    @property
    def device(self) -> str:
        return "cpu" if self.rehearsal else "cuda"

    @property
    def precision(self) -> str:
        """What the large model computes in; float32 is the one that is fast on any CPU."""
        return "fp32" if self.rehearsal else "bf16"

    def size(self, gpu: int, rehearsal: int) -> int:
        """Return how many, or how large, of the two."""
        return rehearsal if self.rehearsal else gpu

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if not self.rehearsal:
            import torch  # here, so that a check without it starts in a moment

            torch.cuda.synchronize()


@dataclass(frozen=True)
class Check:
    """A check by name: its stage, and the seconds it may take."""

    name: str
    stage: str
    seconds: int
    run: Callable[[Setting, Figures], None]


CHECKS: dict[str, Check] = {}


def check(stage: str, seconds: int) -> Callable[[Callable[[Setting, Figures], None]], Callable]:
    """Register a function as a check of ``stage`` that may take ``seconds``; its docstring says what it checks."""

    def register(run: Callable[[Setting, Figures], None]) -> Callable:
        CHECKS[run.__name__] = Check(run.__name__, stage, seconds, run)
        return run

    return register


def require(condition: bool, words: str) -> None:
    """Fail the check with ``words`` unless ``condition`` holds.

    Raises:
        Failed: it does not.
    """
    if not condition:
        raise Failed(words)


def needs_package(name: str) -> None:
    """Skip the check where a package is not installed.

    Raises:
        Skipped: it is not.
    """
    if importlib.util.find_spec(name) is None:
        raise Skipped(f"{name} is not installed")


def largest_difference(one: list[float], other: list[float]) -> float:
    """Return the largest relative difference of two lists of numbers."""
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(one, other, strict=True))
