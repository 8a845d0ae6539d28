"""The user's mistakes: one exception for them, and how a command ends on one."""

import errno
import functools
import re
import signal
import sys
import time
from collections.abc import Callable

from internvl.distributed import ignore_foreign_ranks, is_main_process
from internvl.repository import foreign_checkout

# How long processes after the first hold a message back: torchrun ends them sooner when the first one fails, too.
HOLD_BACK_SECONDS = 8
# What a terminal would obey instead of showing it, but for the layout of messages of several lines.
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Longer than any path that Linux knows (PATH_MAX is 4,096): its beginning and its end.
ENDLESS_WORD = re.compile(r"(\S{200})\S{4096,}(\S{100})")


class UserError(ValueError):
    """Something the person at the terminal can put right.

    The message reads ``<file>:<line or key>: <what is wrong, with the value found>. <what to do>.`` It may quote what
    stood in a file: characters that cannot be printed, or that a terminal would obey, are shown as escapes, and words
    longer than any path are cut.
    """

    def __init__(self, message: str):
        super().__init__(ENDLESS_WORD.sub(r"\1…\2", printable(message)))


def printable(text: str) -> str:
    """Return ``text`` with half and control characters (but tabs and newlines) as escapes like ``\\x1b``."""
    whole = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return CONTROL_CHARACTERS.sub(lambda found: f"\\x{ord(found[0]):02x}", whole)


def shorten(value: object, length: int = 120) -> str:
    """Return a value for a message, cut when it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits, or lists in lists without end
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= length else text[:length] + "…"


def ends_on_user_error(main: Callable) -> Callable:
    """Make a command's ``main`` print a :class:`UserError` without traceback and exit with status 2.

    So does what the system says about a file: no permission, a full disk, a name too long. Of several processes that
    meet the same mistake one speaks.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        ignore_foreign_ranks()  # before anything reads them
        try:
            if foreign := foreign_checkout(sys.argv[0]):
                raise UserError(foreign)
            return main(*args, **kwargs)
        except UserError as err:
            message = str(err)
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            sys.exit(128 + signal.SIGINT)
        except OSError as err:
            if err.errno in (errno.ENOSPC, errno.EDQUOT):
                what = err.filename or "disk"
                message = printable(f"{what}: cannot be written ({err.strerror}). Make room, then run this again.")
            elif err.filename is None:  # not about a file: a broken pipe, a lost connection
                raise
            else:
                message = printable(f"{err.filename}: {err.strerror}. Check the path, its permissions and the disk.")
        sys.stdout.flush()
        if not is_main_process():
            time.sleep(HOLD_BACK_SECONDS)
        sys.stderr.write(f"error: {message}\n")
        sys.exit(2)

    return wrapped
