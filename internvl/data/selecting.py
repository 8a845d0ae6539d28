"""What is selected of a row or an answer: a value by a path of keys, or what a regular expression finds."""

import re

from internvl.errors import UserError


def nested_value(content: object, path: str) -> object:
    """Return the value at a path of keys such as ``plan.action``.

    Raises:
        KeyError: there is none.
    """
    for key in path.split("."):
        if not isinstance(content, dict):
            raise KeyError(key)
        content = content[key]
    return content


def check_pattern(pattern: str, place: str) -> None:
    """Refuse what is no regular expression; ``place`` is the flag or key it stands at.

    Raises:
        UserError: it is none.
    """
    try:
        re.compile(pattern)
    except re.error as err:
        raise UserError(f"{place}: {pattern!r} is not a regular expression ({err}).") from err


def found_by(pattern: str, text: str) -> str | None:
    """Return the first group of a pattern in a text, all that it finds where it has none, None if it finds nothing."""
    found = re.search(pattern, text)
    return None if found is None else found[1] if found.re.groups else found[0]
