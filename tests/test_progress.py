"""Progress in a terminal and in a file."""

import io

import pytest

from internvl import progress
from internvl.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(file, steps: int = 100, seconds_a_step: float = 3.0) -> str:
    """A bar over some minutes of steps."""
    now = [0.0]
    bar = Progress(total=steps, desc="Training", file=file, leave=True)
    bar._time = lambda: now[0]
    bar.start_t = bar.last_print_t = 0.0
    for _ in range(steps):
        now[0] += seconds_a_step
        bar.update()
    bar.close()
    return file.getvalue()


def test_in_a_file_each_state_is_a_line_every_thirty_seconds():
    text = run(io.StringIO())
    lines = text.splitlines()
    assert "\r" not in text and "" not in lines
    assert len(lines) == pytest.approx(100 * 3.0 / progress.LINE_EVERY, abs=2)
    assert "100/100" in lines[-1] and sum("100/100" in line for line in lines) == 1


def test_a_terminal_is_redrawn_in_place():
    text = run(Terminal())
    assert text.count("\r") > 50 and text.count("\n") == 1


def test_a_bar_that_never_shows_writes_nothing():
    file = io.StringIO()
    for _ in Progress(range(5), file=file, delay=2):
        pass
    assert file.getvalue() == ""
