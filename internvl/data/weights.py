"""How much answers count in the loss: the keys ``weight`` and ``loss`` of a row and of its answers."""

import math

from internvl.data.problems import RowError
from internvl.errors import shorten
from internvl.limits import MAX_WEIGHT

WEIGHT_KEYS = ("weight", "loss")
WEIGHT_FORM = f"Give a number from 0 (not learnt) to {MAX_WEIGHT:,}, or remove the key"
LOSS_FORM = "Give true, or false for what is not to be learnt, or remove the key; a number goes into 'weight'"


def read_weight(record: dict, where: str, of: str = "") -> float:
    """Return what a row or turn counts by its own keys: 1 without any, 0 with ``"loss": false``.

    Args:
        record: the row, or a turn of it.
        where: the row's ``file:line``.
        of: names the turn, for messages.

    Raises:
        RowError: a key holds something else than a weight.
    """
    weight, loss = record.get("weight"), record.get("loss")
    if weight is None:
        weight = 1.0
    elif type(weight) not in (int, float) or not math.isfinite(weight) or not 0 <= weight <= MAX_WEIGHT:
        raise RowError(where, "weight", f"{of}has the weight {shorten(weight, 60)}", WEIGHT_FORM)
    if loss is not None and (not isinstance(loss, int | float) or loss not in (0, 1)):
        raise RowError(where, "key 'loss'", f"{of}has the key 'loss' ({shorten(loss, 60)})", LOSS_FORM)
    return 0.0 if loss is not None and not loss else float(weight)


def answer_weights(record: dict, where: str) -> tuple[float, ...]:
    """Return what each answer of a checked row counts, its own weight times the row's; () where all count 1.

    Raises:
        RowError: a weight is none, or a turn that is not an answer has one other than 1.
    """
    turns = record["conversations"]
    if all(part.keys().isdisjoint(WEIGHT_KEYS) for part in (record, *turns)):
        return ()
    of_row = read_weight(record, where)
    weights = []
    for number, turn in enumerate(turns, 1):
        weight = read_weight(turn, where, of=f"turn {number} ")
        if turn["from"] == "gpt":
            weights.append(of_row * weight)
        elif weight not in (0, 1):  # "loss": false at a question says what is so anyway
            what = f"turn {number}, from {turn['from']!r}, has the weight {shorten(turn['weight'], 60)}"
            raise RowError(
                where, "weight of a question", what, "Only answers are learnt: move it to one, or to the row"
            )
    return () if all(weight == 1 for weight in weights) else tuple(weights)
