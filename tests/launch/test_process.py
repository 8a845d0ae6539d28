"""A training as a process: its log, its two streams, its exit status, and signals on their way to it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

RUN = (
    "import sys; from pathlib import Path; from internvl.launch.process import run_logged; "
    "sys.exit(run_logged(sys.argv[2:], Path(sys.argv[1])))"
)
# Says which signals reach it, in this process and in a child of its own; ends at the second.
LISTEN = """
import os, signal, sys, time
def say(number, frame):
    os.write(1, f"{name} got {signal.Signals(number).name}\\n".encode())
    got.append(number)
got, name = [], "child" if os.fork() == 0 else "parent"
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, say)
os.write(1, f"{name} is ready\\n".encode())
while len(got) < 2:
    time.sleep(0.01)
if name == "parent":
    os.wait()
os._exit(3)
"""


def start(log: Path, *command: str, **options) -> subprocess.Popen:
    words = [sys.executable, "-S", "-c", RUN, str(log), *command]
    return subprocess.Popen(words, cwd=REPOSITORY, text=True, **options)


def wait_for(log: Path, text: str, count: int) -> None:
    limit = time.monotonic() + 30
    while not log.exists() or log.read_text().count(text) < count:
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_both_streams_are_copied_and_stay_apart(tmp_path):
    log = tmp_path / "log"
    log.write_text("before\n")
    program = "import os; os.write(1, b'out\\n'); os.write(2, b'err \\xff\\n'); exit(7)"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "errors": "replace"}
    process = start(log, sys.executable, "-c", program, **pipes)
    assert process.communicate(timeout=30) == ("out\n", "err \N{REPLACEMENT CHARACTER}\n")
    assert process.returncode == 7
    assert log.read_bytes().startswith(b"before\n")
    assert sorted(log.read_bytes().splitlines()) == [b"before", b"err \xff", b"out"]


def test_a_command_that_a_signal_ends_has_its_exit_status(tmp_path):
    process = start(tmp_path / "log", sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    assert process.wait(30) == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_reaches_the_whole_group_and_so_does_a_second_one(tmp_path, number):
    log = tmp_path / "log"
    # Tests that run in the background of a script have SIGINT ignored.
    process = start(log, sys.executable, "-c", LISTEN, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))
    wait_for(log, "is ready", 2)
    for count in (1, 2):
        process.send_signal(number)
        wait_for(log, f"parent got {number.name}", count)
        wait_for(log, f"child got {number.name}", count)
    assert process.wait(30) == 3


def test_a_signal_that_nohup_ignores_does_not_end_the_training(tmp_path):
    log = tmp_path / "log"
    process = start(log, sys.executable, "-c", LISTEN, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for(log, "is ready", 2)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
        process.send_signal(number)
        time.sleep(0.1)
    assert process.wait(30) == 3
    assert "SIGHUP" not in log.read_text()


def test_a_signal_before_the_training_has_started_reaches_it(tmp_path, monkeypatch):
    from internvl.launch import process

    started = []

    class Signalled(subprocess.Popen):
        """A process during whose start the launcher is told to stop."""

        def __init__(self, command, **options):
            super().__init__(command, **options)
            if command[0] != "tee":
                started.append(self)
                os.kill(os.getpid(), signal.SIGTERM)

    before = {number: signal.getsignal(number) for number in process.SIGNALS}
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # or a failure would end the tests, too
    monkeypatch.setattr(process.subprocess, "Popen", Signalled)
    try:
        status = process.run_logged([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert status == 128 + signal.SIGTERM and len(started) == 1
