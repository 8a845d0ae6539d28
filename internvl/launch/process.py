"""The training as a process: what it prints is copied into a log, signals are passed on, its exit status is ours."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

# USR1 is a batch system's warning before it takes the machine.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def run_logged(command: Sequence[str], log: Path) -> int:
    """Run a command with a copy of all it prints appended to ``log``; return its exit status as a shell counts it.

    stdout and stderr stay two streams. ``tee`` copies them, in processes of their own, so that a training whose
    launcher was killed can still print. The command has a process group of its own: a signal reaches all of it once.
    """
    training: subprocess.Popen | None = None
    early: list[int] = []  # signals that came before there was a training

    def pass_on(number: int, frame=None) -> None:
        if training is None:
            early.append(number)
            return
        with contextlib.suppress(ProcessLookupError):  # all of it has ended
            os.killpg(training.pid, number)

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup, and so it stays
            signal.signal(number, pass_on)
    copiers = [
        subprocess.Popen(["tee", "-a", "--", str(log)], stdin=subprocess.PIPE, stdout=stream, start_new_session=True)
        for stream in (1, 2)
    ]
    training = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=copiers[0].stdin,
        stderr=copiers[1].stdin,
        start_new_session=True,
    )
    for missed in early:
        pass_on(missed)
    for copier in copiers:
        if copier.stdin is not None:
            copier.stdin.close()  # the training alone holds the other end
    status = training.wait()
    for copier in copiers:
        copier.wait()
    return 128 - status if status < 0 else status
