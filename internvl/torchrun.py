"""torchrun that ends with the exit status of the process that failed.

    python -m internvl.torchrun --nproc_per_node=2 script.py ...     # flags as for torchrun

Plain torchrun turns every failure into exit status 1 and a traceback of its own, which buries the message of
the process that failed. A mistake of the user's (status 2) has to reach the launcher as status 2, with the
script's one message.
"""

import logging
import os
import signal
import sys
from pathlib import Path

USER_MISTAKE = 2


def exit_status(code: int) -> int:
    """Exit status as a shell counts it: a process killed by signal N, in Python -N, has 128 + N."""
    return 128 - code if code < 0 else code


def _keep_log_record(record: logging.LogRecord) -> bool:
    """Whether to show a log line of torchrun: not of a process that has said what is wrong, nor of ending others."""
    message = record.getMessage()
    return f"failed (exitcode: {USER_MISTAKE})" not in message and "closing signal" not in message


def main(argv: list[str] | None = None) -> int:
    # Imported here: this takes seconds.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, parse_args, run

    argv = sys.argv[1:] if argv is None else argv
    if "--shutdown-timeout" not in get_args_parser().format_help().replace("_", "-"):  # torch 2.11 and older
        argv = [word for word in argv if not word.startswith("--shutdown_timeout=")]
    # DeepSpeed builds parts of itself with ninja, which came with it, also where the environment is not activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(_keep_log_record)
    try:
        run(parse_args(argv))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode != USER_MISTAKE:
            how = f"exit status {failure.exitcode}"
            if failure.exitcode < 0:
                how = f"signal {failure.signal_name()}"
                if failure.exitcode == -signal.SIGKILL:
                    how += ", which is what a machine short of memory does"
            message = f"process {rank}: ended with {how}. The reason is above."
            print(message, file=sys.stderr)  # noqa: T201
        return exit_status(failure.exitcode)
    except SignalException as error:
        print(f"stopped by {error.sigval.name}", file=sys.stderr)  # noqa: T201
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main())
