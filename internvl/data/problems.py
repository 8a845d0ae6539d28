"""What can be wrong with a row: an error that knows its place and its group in a report; and several in one."""

from internvl.errors import UserError, printable


class RowError(UserError):
    """A row that cannot be trained on.

    ``where`` is ``file:line``; ``reason`` a short name shared by all rows with the same fault. The message reads
    ``<where>: <what>. <todo>.``; without ``todo``, ``what`` is already sentences of that form.
    """

    def __init__(self, where: str, reason: str, what: str, todo: str | None = None):
        super().__init__(f"{where}: {what}" if todo is None else f"{where}: {what}. {todo}.")
        self.where = printable(where)
        self.reason = reason


class LeftOutError(RowError):
    """A row that is as it should be and, as the user asked, does not train."""


class LongRowError(LeftOutError):
    """A row of more tokens than max_seq_length, where the user chose to leave such rows out."""


class ZeroWeightError(LeftOutError):
    """A row of whose answers none counts."""

    def __init__(self, where: str):
        super().__init__(where, "weight 0", "all its answers have the weight 0", "Nothing is learnt from it")


def raise_first(problems: list[str], shown: int = 5) -> None:
    """Raise one error with the first few of these messages and the number of the others.

    Raises:
        UserError: there are messages.
    """
    if problems:
        more = f"\n… and {len(problems) - shown} more." if len(problems) > shown else ""
        raise UserError("\n".join(problems[:shown]) + more)
