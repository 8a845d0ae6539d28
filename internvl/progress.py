"""Progress bars that stay readable in files: redrawn in place on a terminal, one line every 30 seconds elsewhere."""

import sys
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm

LINE_EVERY = 30  # seconds


class Progress(tqdm):
    """A tqdm bar; in a log or a pipe, each state is a line of its own instead of a redrawn one."""

    def __init__(self, *args: Any, file: TextIO | None = None, **kwargs: Any):
        file = file if file is not None else sys.stderr
        self.redraws = file.isatty()
        if not self.redraws:
            # miniters: tqdm would otherwise look at the clock so seldom that lines come later than they are due.
            kwargs.update({"mininterval": LINE_EVERY, "maxinterval": LINE_EVERY, "miniters": 1, "ncols": 100})
        super().__init__(*args, file=file, **kwargs)  # type: ignore[call-overload]

    @staticmethod
    def status_printer(file) -> Callable[[str], None]:
        """Return what writes a state of the bar: tqdm's own on a terminal."""
        if file.isatty():
            return tqdm.status_printer(file)

        def print_line(state: str) -> None:
            if state.strip():
                file.write(state.rstrip() + "\n")
                file.flush()

        return print_line

    def close(self) -> None:
        if self.redraws or self.disable:
            super().close()
            return
        was_shown = self.last_print_t >= self.start_t + (self.delay or 0)
        if was_shown and self.leave is not False and self.n != self.last_print_n:
            self.display()
        # tqdm ends a bar that was shown with what a terminal needs; of one that was not, it writes nothing.
        self.last_print_t = self.start_t + (self.delay or 0) - 1
        super().close()
