"""What the user typed behind a launcher's name: the flags that it acts on, and paths from where he typed them."""

import argparse
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from internvl.cli import Parser
from internvl.errors import UserError
from internvl.repository import REPOSITORY


def is_on(value: str | None) -> bool:
    """Whether a switch is on: not for an empty value, 0, false, no and off."""
    return (value or "0").lower() not in ("0", "false", "no", "off")


def make_parser(names: Collection[str]) -> Parser:
    """Return a parser of the flags ``names``, each with a value; of the other words it makes nothing."""
    parser = Parser(add_help=False, allow_abbrev=False, exit_on_error=False, argument_default=argparse.SUPPRESS)
    for name in names:
        parser.add_argument(f"--{name}")
    return parser


def read_flags(parser: Parser, words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the flags that the parser knows, by name, and all other words in order.

    Raises:
        UserError: a flag comes without its value.
    """
    try:
        known, rest = parser.parse_known_args(words)
    except argparse.ArgumentError as err:
        flag = err.argument_name
        raise UserError(f"{flag}: has no value. Write it after the flag: {flag} VALUE.") from err
    return vars(known), rest


def names_of(words: Sequence[str]) -> set[str]:
    """Return the names of all flags among the words, without dashes in front and with underscores."""
    flags = (word.partition("=")[0] for word in words if word.startswith("--"))
    return {flag.removeprefix("--").replace("-", "_") for flag in flags}


class Paths:
    """Where a path that the user typed leads from the repository, in which everything runs.

    ``typed_in`` is the folder where he typed it (INVOKED_FROM of shell/lib/common.sh).
    """

    def __init__(self, typed_in: str | Path | None = None, root: Path = REPOSITORY):
        self.typed_in = str(typed_in or os.environ.get("INVOKED_FROM", "."))
        self.in_root = os.path.samefile(self.typed_in, root)

    def input(self, path: str) -> str:
        """Return something that is read: in his folder if it is there, otherwise in the repository."""
        return self.output(path) if os.path.exists(os.path.join(self.typed_in, path)) else _not_a_flag(path)

    def output(self, path: str) -> str:
        """Return something that need not be there yet."""
        return _not_a_flag(path) if self.in_root else os.path.join(self.typed_in, path)


def _not_a_flag(path: str) -> str:
    return f"./{path}" if path.startswith("-") else path
