"""A process that has imported everything and forks at once: runs a command in seconds, and kills it where told.

    python -m tests.faults.zygote        # started by the fixture ``runs``; speaks JSON lines on stdin and stdout

A request is ``{"entry": "finetune" or "merge", "argv": […], "env": {…}, "log": FILE, "fault": {…}}``; the answer is
the process's id. ``{"wait": PID}`` is answered with its exit status, minus the signal's number where one ended it.

``fault`` says what goes wrong: ``{"batch": N, "signal": S}`` sends signal S (SIGKILL without it) before the N-th
micro-batch; ``{"write": N, "below": FOLDER}`` sends SIGKILL the N-th time a file below the folder is opened for
writing, renamed or removed; ``{"nan": N}`` makes the N-th micro-batch's loss no number; ``{"remove": FILE,
"batch": N}`` removes a file before the N-th micro-batch.
"""

import json
import os
import signal
import sys
from collections.abc import Callable

import matplotlib.backends.backend_agg  # noqa: F401 - drawn with at the end of a training
import torch

from internvl.train import internvl_chat_finetune
from internvl.train.trainer import FinetuneTrainer
from tools import merge_lora

WRITES = {"os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.mkdir": 0}


def at_batch(number: int, action: Callable[[], None]) -> None:
    """Make this process do something before its ``number``-th micro-batch."""
    step = FinetuneTrainer.training_step
    left = [number]

    def training_step(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            action()
        return step(*args, **kwargs)

    FinetuneTrainer.training_step = training_step


def spoil_loss(number: int) -> None:
    """Make the loss of this process's ``number``-th micro-batch no number."""
    compute = FinetuneTrainer.compute_loss
    left = [number]

    def compute_loss(*args, **kwargs):
        left[0] -= 1
        return compute(*args, **kwargs) * (float("nan") if left[0] == 0 else 1.0)

    FinetuneTrainer.compute_loss = compute_loss


def die_at_write(number: int, folder: str) -> None:
    """Make this process kill itself when it changes something below ``folder`` for the ``number``-th time."""
    left = [number]

    def note(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        elif event in WRITES:
            path, writes = arguments[WRITES[event]], True
        else:
            return
        if writes and isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(folder):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(note)


def run(request: dict) -> None:
    """Run a command in this process, which was forked for it, and never return."""
    status = 1
    try:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(request["env"])
        fault = request.get("fault", {})
        if "remove" in fault:
            at_batch(fault["batch"], lambda: os.unlink(fault["remove"]))
        elif "batch" in fault:
            at_batch(fault["batch"], lambda: os.kill(os.getpid(), fault.get("signal", signal.SIGKILL)))
        elif "write" in fault:
            die_at_write(fault["write"], fault["below"])
        elif "nan" in fault:
            spoil_loss(fault["nan"])
        entry = {"finetune": internvl_chat_finetune.main, "merge": merge_lora.main}[request["entry"]]
        entry(request["argv"])
        status = 0
    except SystemExit as err:
        status = err.code if isinstance(err.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    torch.set_num_threads(1)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            run(request)
        print(json.dumps(pid), flush=True)


if __name__ == "__main__":
    main()
