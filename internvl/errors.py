"""The user's mistakes: one exception for them, and how a command ends on one."""

import errno
import functools
import os
import signal
import sys
import time
from collections.abc import Callable

# How long processes after the first hold a message back: torchrun ends them sooner when the first one fails, too.
HOLD_BACK_SECONDS = 8


class UserError(ValueError):
    """Something the person at the terminal can put right.

    The message reads ``<file>:<line or key>: <what is wrong, with the value found>. <what to do>.``
    """


def ends_on_user_error(main: Callable) -> Callable:
    """Make a command's ``main`` print a :class:`UserError` without traceback and exit with status 2.

    Of several processes that meet the same mistake one speaks.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as err:
            sys.stdout.flush()
            if int(os.environ.get("RANK", "0")) > 0:
                time.sleep(HOLD_BACK_SECONDS)
            sys.stderr.write(f"error: {err}\n")
            sys.exit(2)
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            sys.exit(128 + signal.SIGINT)
        except OSError as err:
            if err.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            sys.stderr.write(f"error: {err.filename or 'disk'}: cannot be written ({err.strerror}). Make room.\n")
            sys.exit(2)

    return wrapped
