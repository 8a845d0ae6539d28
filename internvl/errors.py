"""The user's mistakes: one exception for them, and how a command ends on one."""

import functools
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Something the person at the terminal can put right.

    The message reads ``<file>:<line or key>: <what is wrong, with the value found>. <what to do>.``
    """


def ends_on_user_error(main: Callable) -> Callable:
    """Make a command's ``main`` print a :class:`UserError` without traceback and exit with status 2."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as err:
            sys.stdout.flush()
            sys.stderr.write(f"error: {err}\n")
            sys.exit(2)

    return wrapped
