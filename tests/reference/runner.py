"""Cases, the report, and the list of families.

A case is ``ok`` or ``FAILED``; or ``differs``, where the project decided against the original's behaviour and the
case checks our own instead (it is ``FAILED`` when that does not hold). ``differs`` counts neither way.
"""

import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

# Family -> the files or folders of DIR that it reads (it is skipped when none is there), and whether it needs the
# published tokenizer.
FAMILIES: dict[str, tuple[tuple[str, ...], bool]] = {
    "tiny": (("tiny",), False),
    "keys": (("keys_*.json", "trainable_*.json"), False),
    "lora": (("lora",), False),
    "tiling": (("tiling",), False),
    "tokens": (("tokens",), True),
    "dataset": (("dataset",), True),
    "prompts": (("prompts",), True),
    "caption": (("caption",), False),
    "eval_caption": (("eval_caption",), False),
}

# The decided differences, as the golden values' README lists them.
DECISIONS = {
    "shares in turn": "processes answer every n-th image by size, not a range each: none waits for the largest",
    "feature count": "more features than image tokens raises with both counts; the original truncates the features "
    "and multiplies the loss by 0",
    "stateless rotary": "a call never depends on an earlier one; in the original the rotary base of the longest "
    "sequence so far stays",
    "caller's config": "the caller's generation_config is not modified; the original writes eos_token_id into it",
    "marker count": "each image needs its <image> marker and each marker its image, with both counts in the "
    "message; the original leaves markers as text or images without tokens",
    "data error": "a human turn at the end, an empty answer, turns that do not alternate and literal special tokens "
    "or markers out of place are data errors that name the line; the original masks or changes such rows silently",
    "system turn": "a system turn is honoured; the original fails on it",
    "lost labels": "answers are supervised; the original loses all labels of such rows when its lengths disagree",
    "unsupported template": "the template is not supported and refused by name; the original ignores all its labels",
    "cut": "a sample is cut neither through image tokens nor before its first answer; the original trains on the rest",
    "stripped values": "values are stripped under every template; the original did so under internlm2-chat only",
    "RGB first": "images become RGB before tiling in evaluation as in training; the original's evaluation resized "
    "palettes and bitmaps",
    "slow decoding": "text is decoded with the clean-up of the slow tokenizer, with which published scores were made; "
    "these golden values are the fast one's",
    "exact lengths": "rows are grouped by their exact number of tokens; the original estimates it from the text",
}


@dataclass(frozen=True)
class Case:
    """The outcome of one comparison; ``difference`` is the largest found, where there is a number."""

    family: str
    name: str
    status: str
    difference: float | None = None
    tolerance: float | None = None
    note: str = ""

    def line(self) -> str:
        numbers = "" if self.difference is None else f"  {self.difference:.1e} ({self.tolerance:.0e})"
        return f"{self.status:7} {self.family}/{self.name}{numbers}{'  ' + self.note if self.note else ''}"


@dataclass
class Report:
    """Collects cases; ``on_line`` gets each line as it comes."""

    on_line: Callable[[str], None] = lambda line: None
    family: str = ""
    cases: list[Case] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def add(self, name: str, status: str, **details) -> None:
        self.cases.append(Case(self.family, name, status, **details))
        self.on_line(self.cases[-1].line())

    def skip(self, what: str, why: str) -> None:
        self.skipped.append(f"skipped {what}: {why}")
        self.on_line(self.skipped[-1])

    def check(self, name: str, holds: bool, note: str = "") -> None:
        """A yes-or-no case; ``note`` says what is wrong."""
        self.add(name, "ok" if holds else "FAILED", note="" if holds else note)

    def equal(self, name: str, got: object, want: object) -> None:
        """A case that must agree exactly."""
        self.check(name, got == want, describe_mismatch(got, want))

    def within(self, name: str, difference: float, tolerance: float) -> None:
        """A case whose largest difference is known; NaN fails."""
        status = "ok" if difference <= tolerance else "FAILED"
        self.add(name, status, difference=float(difference), tolerance=tolerance)

    def close(self, name: str, got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
        """A case of two tensors of one shape."""
        if got.shape != want.shape:
            self.check(name, False, f"shape {tuple(got.shape)}, not {tuple(want.shape)}")
        else:
            difference = (got.double() - want.double()).abs().max().item() if got.numel() else 0.0
            self.within(name, difference, tolerance)

    def differs(self, name: str, decision: str, holds: bool, note: str) -> None:
        """A documented difference; ``holds`` tells whether our decided behaviour does, ``note`` what it is not."""
        self.add(name, "differs" if holds else "FAILED", note=f"[{decision}]" if holds else note)

    @contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """Turn an exception of the code under test into a failed case."""
        try:
            yield
        except Exception as err:
            place = traceback.extract_tb(err.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            self.add(name, "FAILED", note=f"{type(err).__name__} at {where}: {str(err)[:150]}")

    @property
    def failed(self) -> list[Case]:
        return [case for case in self.cases if case.status == "FAILED"]

    def summary(self) -> list[str]:
        """The documented differences with their reasons, and the totals in the last line."""
        lines = []
        different = [case for case in self.cases if case.status == "differs"]
        if different:
            lines.append(f"\nDocumented differences ({len(different)} cases, counted neither way):")
        for decision, reason in DECISIONS.items():
            names = [f"{case.family}/{case.name}" for case in different if case.note == f"[{decision}]"]
            if names:
                more = f" and {len(names) - 6} more" if len(names) > 6 else ""
                lines += [f"  {decision}: {reason}", f"    {', '.join(names[:6])}{more}"]
        if self.failed:
            lines += ["\nFailed:"] + [f"  {case.line()}" for case in self.failed]
        passed = sum(case.status == "ok" for case in self.cases)
        return [*lines, f"\n{passed} passed, {len(self.failed)} failed"]

    def as_dict(self) -> dict:
        return {
            "passed": sum(case.status == "ok" for case in self.cases),
            "failed": len(self.failed),
            "differs": sum(case.status == "differs" for case in self.cases),
            "skipped": self.skipped,
            "cases": [asdict(case) for case in self.cases],
        }


def describe_mismatch(got: object, want: object) -> str:
    """Where two values part, shortly."""
    if isinstance(got, (list, tuple, str)) and isinstance(want, (list, tuple, str)):
        pairs = enumerate(zip(got, want, strict=False))
        first = next((index for index, (a, b) in pairs if a != b), min(len(got), len(want)))
        if first < min(len(got), len(want)) and isinstance(got[first], (list, str)) and len(got[first]) > 1:
            return f"[{first}] {describe_mismatch(got[first], want[first])}"
        shown = [repr(value[first : first + 8])[:60] for value in (got, want)]
        return f"from index {first} (lengths {len(got)}, {len(want)}): {shown[0]}, not {shown[1]}"
    return f"{str(got)[:80]}, not {str(want)[:80]}"


def run_families(report: Report, folder: Path, names: Sequence[str], tokenizer_folder: Path) -> None:
    """Run families one after another; one whose files are missing is skipped with a line."""
    tokenizer = None
    for name in names:
        report.family = name
        patterns, needs_tokenizer = FAMILIES[name]
        if not any(list(folder.glob(pattern)) for pattern in patterns):
            report.skip(name, f"{folder} has no {' or '.join(patterns)}")
            continue
        if needs_tokenizer and tokenizer is None and tokenizer_folder.is_dir():
            from internvl.model.internvl_chat import load_tokenizer

            tokenizer = load_tokenizer(tokenizer_folder)
        if needs_tokenizer and tokenizer is None:
            report.skip(name, f"needs the published tokenizer, and {tokenizer_folder} is not there (--tokenizer)")
            continue
        run = import_module(f"tests.reference.{name}").run
        with report.guard("(the whole family)"), quiet_single_thread():
            run(report, folder, tokenizer) if needs_tokenizer else run(report, folder)


@contextmanager
def quiet_single_thread() -> Iterator[None]:
    """One thread, as the golden values were made (and tiny models run fastest), without transformers' notices."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
        transformers_logging.enable_progress_bar()
        transformers_logging.set_verbosity(verbosity)
