"""Command lines in one spelling: flags with dashes or underscores, switches with or without True."""

import argparse
import sys
from collections.abc import Sequence

WORDS = {"true": True, "false": False}


class Parser(argparse.ArgumentParser):
    """An argument parser that takes a flag in the spellings of trainings and of tools alike.

    ``--allow-outside-root``, ``--allow_outside_root`` and ``--allow_outside_root True`` are the same, and with
    ``False`` the switch is off. So a message may name a flag without knowing which command its reader called.
    """

    def parse_known_args(self, args=None, namespace=None):
        return super().parse_known_args(self.in_one_spelling(sys.argv[1:] if args is None else args), namespace)

    def error(self, message: str):
        """End with one line; argparse would print the usage of a script that evaluate.sh's user never called."""
        self.exit(2, f"error: command line: {message}. --help lists the flags.\n")

    def in_one_spelling(self, args: Sequence[str]) -> list[str]:
        """Return the arguments with this parser's own names, and switches without a word behind them."""
        result, rest = [], [str(argument) for argument in args]
        while rest:
            argument = rest.pop(0)
            if argument == "--":
                return [*result, argument, *rest]
            name, equals, value = argument.partition("=")
            action = self.find(name) if name.startswith("--") else None
            if action is None:
                result.append(argument)
                continue
            name = next(option for option in action.option_strings if option.startswith("--"))
            is_switch = action.nargs == 0 and action.const is True
            if is_switch and not equals and rest and rest[0].lower() in WORDS:
                equals, value = "=", rest.pop(0)
            if is_switch and value.lower() in WORDS:
                result += [name] if WORDS[value.lower()] else []
            else:
                result.append(name + equals + value)
        return result

    def find(self, name: str) -> argparse.Action | None:
        """Return the flag that is called ``name`` with dashes or underscores; None if there is none."""
        wanted = name.replace("_", "-")
        for action in self._actions:
            if any(option.replace("_", "-") == wanted for option in action.option_strings):
                return action
        return None
