"""Pairs for preferences: of the answers drawn to a question, the best and the worst by what they are worth."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from internvl.data.annotation import parse_row
from internvl.data.problems import RowError
from internvl.reward.rewards import Answers


@dataclass(frozen=True)
class Pair:
    """Two answers to the prompt of ``Answers`` and what each is worth."""

    chosen: str
    rejected: str
    scores: tuple[float, float]

    @property
    def gap(self) -> float:
        """By how much the chosen answer is worth more."""
        return self.scores[0] - self.scores[1]


def choose_pair(answers: Answers, scores: Sequence[float]) -> Pair | None:
    """Return the best and the worst of a prompt's answers; None where they are worth the same, or none is apart.

    Answers that did not come to their end are no answers that a row could hold.
    """
    ended = [number for number, end in enumerate(answers.ended) if end and answers.texts[number]]
    if not ended:
        return None
    best, worst = max(ended, key=lambda number: scores[number]), min(ended, key=lambda number: scores[number])
    if scores[best] <= scores[worst] or answers.texts[best] == answers.texts[worst]:
        return None
    return Pair(answers.texts[best], answers.texts[worst], (float(scores[best]), float(scores[worst])))


def pair_row(line: bytes, pair: Pair, where: str) -> dict | None:
    """Return a row with a pair's answers in the place of its own last one; None if no row may hold them.

    Args:
        line: the row as it is written.
        pair: its answers.
        where: its ``file:line``.
    """
    row = json.loads(line)
    *turns, last = row["conversations"]
    made = {
        **row,
        "conversations": [*turns, {**last, "value": pair.chosen}],
        "rejected": pair.rejected,
        "scores": [round(score, 4) for score in pair.scores],
    }
    try:
        parse_row(made, where)
    except RowError:  # such as a box that is none
        return None
    return made
