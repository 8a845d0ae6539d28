"""Runs a reader on one damaged input and judges how it ended: a result, or one message in the project's form."""

import faulthandler
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from internvl.errors import UserError
from tests.faults.outcomes import OUTCOMES

# What a default run and a long one (INTERNVL_FAULTS=10000) try, over all readers.
DEFAULT_INPUTS = 320
INPUTS = int(os.environ.get("INTERNVL_FAULTS", DEFAULT_INPUTS))
SECONDS = 20  # that one input may take
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# A place, what is wrong, and what to do: "<file>:<line or key>: <what>. <what to do>."
FORM = re.compile(r"\S.*?: .+[.?)!'\"…] \S.*[.…]", re.DOTALL)
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname"}
PROCESSES = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"}


class HangError(BaseException):
    """An input took too long. No reader may catch it, so it is not an Exception."""


class Guard:
    """Watches, through the interpreter's audit events, what a block writes, connects to and starts."""

    def __init__(self):
        self.allowed: Path | None = None
        self.violations: list[str] | None = None
        sys.addaudithook(self._event)  # hooks cannot be taken away again: there is one, switched on and off

    def _event(self, event: str, arguments: tuple) -> None:
        if self.violations is None:
            return
        if event in NETWORK or event in PROCESSES:
            self.violations.append(f"{event}{arguments!r:.200}")
        elif event in CHANGES or (event == "open" and self._writes(arguments)):
            places = arguments[:2] if event in ("os.rename", "os.link", "os.symlink") else arguments[:1]
            # Deleting a folder goes from open folder to open folder, with names that are relative to those.
            held = arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
            folder = os.readlink(f"/proc/self/fd/{held}") if held >= 0 else ""
            places = [os.path.join(folder, os.fsdecode(place)) for place in places if not isinstance(place, int)]
            self.violations += [f"{event} {place}" for place in places if not self._may(place)]

    @staticmethod
    def _writes(arguments: tuple) -> bool:
        path, _, flags = arguments
        return not isinstance(path, int) and bool((flags or 0) & WRITES)

    def _may(self, place: str) -> bool:
        inside = os.path.realpath(place)
        return place == os.devnull or "__pycache__" in place or Path(inside).is_relative_to(self.allowed)

    @contextmanager
    def watch(self, allowed: Path) -> Iterator[list[str]]:
        """Yield the list of what happened; writing below ``allowed`` is right."""
        self.allowed, self.violations = allowed.resolve(), []
        try:
            yield self.violations
        finally:
            self.violations = None


GUARD = Guard()


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise :class:`HangError` in the block after so long; where Python does not get to run, end the process."""

    def stop(signum, frame):
        raise HangError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(3 * seconds, exit=True)
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def check_message(message: str) -> None:
    """A message has the project's form, and can be printed without a terminal obeying it."""
    assert FORM.fullmatch(message.strip()), f"not of the project's form: {message!r}"
    assert "Traceback" not in message
    message.encode()  # no half characters
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", message), f"control characters: {message!r}"
    assert len(message) < 20_000, f"{len(message)} characters"


def judge(drive: Callable[[], object], out: Path) -> str:
    """Run a reader; return "read" or "refused". All else is a fault of ours.

    ``drive`` may call a library function, which raises UserError, or a command's ``main``, which ends with status 2
    and the message on stderr. It may write below ``out`` only, and neither connect nor start a process.
    """
    stdout, stderr = StringIO(), StringIO()
    outcome = "read"
    with time_limit(SECONDS), GUARD.watch(out) as violations, redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            outcome = "refused" if drive() == 2 else "read"
        except UserError as err:
            check_message(str(err))
            outcome = "refused"
        except SystemExit as end:
            assert end.code == 2, f"exit status {end.code}: {stderr.getvalue()}"
            _, *messages = re.split(r"^error: ", stderr.getvalue(), maxsplit=1, flags=re.MULTILINE)
            assert messages, f"no message: {stderr.getvalue()!r}"
            check_message(messages[0])
            outcome = "refused"
    assert not violations, violations
    assert "Traceback" not in stderr.getvalue() + stdout.getvalue(), stderr.getvalue()
    stdout.getvalue().encode()
    return outcome


def fuzz(name: str, inputs: st.SearchStrategy, drive: Callable, out: Path, *, weight: float) -> Counter:
    """Try a reader's share of the inputs: ``drive(input)``, prepared by itself, gives what to judge."""
    outcomes = OUTCOMES.setdefault(name, Counter())

    @settings(
        max_examples=max(1, round(weight * INPUTS)),
        deadline=None,  # `time_limit` is the limit
        database=None,
        report_multiple_bugs=False,
        derandomize=INPUTS == DEFAULT_INPUTS,  # the run by default is the same every time
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def run(case) -> None:
        prepared = drive(case)
        outcomes[judge(prepared, out)] += 1

    run()
    return outcomes
