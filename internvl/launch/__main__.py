"""What ``launch`` of shell/lib/launch.sh calls, twice: to check what costs nothing, and to start what is installed.

python -m internvl.launch check|run torchrun --nproc_per_node=N SCRIPT [FLAG VALUE]... -- [USER'S FLAG]...
python -m internvl.launch check|run evaluation SCRIPT [FLAG VALUE]... -- CHECKPOINT [USER'S FLAG]...
"""

import io
import os
import signal
import sys
from collections.abc import Sequence

from internvl.errors import UserError
from internvl.launch import evaluation, finetune
from internvl.launch.config import can_read


def main(words: Sequence[str]) -> int:
    """Check or start what a script of shell/ asks for; return the exit status."""
    step, kind, *rest = words
    end = rest.index("--")
    call, typed = rest[:end], rest[end + 1 :]
    try:
        if kind == "evaluation":
            request = evaluation.read(call, typed)
            return 0 if step == "check" else evaluation.start(request)
        if step == "check" and not can_read(os.environ.get("CONFIG") or ".json"):
            return 0  # looked at once its package is installed
        settings = finetune.read([kind, *call], typed)
        return 0 if step == "check" else finetune.start(settings)
    except UserError as err:
        print(err, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a plan that is piped into head ends without a traceback
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files that are not UTF-8
    sys.exit(main(sys.argv[1:]))
