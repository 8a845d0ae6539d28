"""Runs the checks of a stage, each in a process of its own, and writes what came of them, a line each."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from acceptance.checks import CHECKS, REPOSITORY, Check, Failed, Figures, Setting, Skipped

RESULTS = "acceptance.json"
SHOWN_LINES = 12  # of the log of a check that failed
# How a check's own process ends.
PASSED, NOT_AS_IT_SHOULD_BE, NOT_HERE = 0, 3, 4


def of_stage(stage: str, names: list[str]) -> list[Check]:
    """Return the checks of a stage, or those of ``names``, in the order in which they build on one another."""
    return [check for check in CHECKS.values() if check.name in names or (not names and check.stage == stage)]


def run_check(name: str, setting: Setting, figures_file: Path) -> int:
    """Run one check in this process and return how it ended; the last line printed is the reason, if there is one."""
    try:
        CHECKS[name].run(setting, Figures(figures_file))
    except Skipped as reason:
        print(reason)
        return NOT_HERE
    except Failed as reason:
        print(reason)
        return NOT_AS_IT_SHOULD_BE
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return NOT_AS_IT_SHOULD_BE
    return PASSED


def run_stage(checks: list[Check], setting: Setting, out: Path, command: list[str]) -> Iterator[dict]:
    """Yield the result of each check; each is a line of ``out/acceptance.json`` before it is yielded.

    A result has ``stage``, ``name``, ``ok`` (None: skipped), ``seconds``, ``numbers``, and where it is not ok a
    ``reason``. The output of a check is in ``out/NAME.log``.

    Args:
        checks: what to run.
        setting: where.
        out: folder of the results.
        command: this program, with which a check is started in its own process.
    """
    out.mkdir(parents=True, exist_ok=True)
    for check in checks:
        result = _run_apart(check, setting, out, command)
        with open(out / RESULTS, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(result) + "\n")
        yield result


def _run_apart(check: Check, setting: Setting, out: Path, command: list[str]) -> dict:
    """Run a check in a process of its own, which dies with all it has started when its time is over."""
    log, started = out / f"{check.name}.log", time.monotonic()
    with tempfile.TemporaryDirectory() as folder, open(log, "wb") as stream:
        figures = Path(folder) / "figures.json"
        words = [*command, check.stage, "--check", check.name, "--figures", str(figures), "--work", str(setting.work)]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "INTERNVL_SKIP_INSTALL": "1"}
        if setting.rehearsal:
            words.append("--rehearse")
            # Several threads on cores that are busy wait for each other most of the time.
            environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            words, cwd=REPOSITORY, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status: int | None = process.wait(check.seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = None
        numbers = json.loads(figures.read_text(encoding="utf-8")) if figures.is_file() else {}
    result = {
        "stage": check.stage,
        "name": check.name,
        "ok": None if status == NOT_HERE else status == PASSED,
        "seconds": round(time.monotonic() - started, 1),
        "numbers": numbers,
    }
    if status is None:
        result["reason"] = f"took more than {check.seconds} s (see {log})"
    elif status != PASSED:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        result["reason"] = lines[-1] if lines else f"ended with status {status}"
    return result


def this_program() -> list[str]:
    """Return the command that this process was started with, without its arguments."""
    return [sys.executable, str(REPOSITORY / "tools" / "gpu_acceptance.py")]
