"""Balance of answers: how often each kind of answer is to count in an epoch, by weights or by repeated rows."""

import json
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from internvl.data.annotation import Row
from internvl.data.problems import RowError
from internvl.data.selecting import check_pattern, found_by, nested_value
from internvl.errors import UserError, shorten
from internvl.limits import MAX_REPEAT_TIME

EQUAL = "equal"
MAX_CLASSES = 10_000  # more are not kinds of answers, but answers
Target = Annotated[float, Field(gt=0, le=1_000_000)]


class BalanceEntry(BaseModel):
    """The key ``balance`` of a meta entry, as it is written."""

    model_config = ConfigDict(extra="forbid")

    field: Annotated[str, Field(min_length=1, description="the key of a JSON answer, in quotes")] | None = None
    pattern: Annotated[str, Field(min_length=1, description="a regular expression, in quotes")] | None = None
    to: Annotated[
        Literal["equal"] | dict[str, Target], Field(description='"equal", or an object of kind of answer: number')
    ]
    by: Literal["weight", "repeat"] = "weight"


@dataclass(frozen=True)
class Balance:
    """How answers are told apart, and what each kind is to count.

    The kind of an answer is the value of ``field`` in its JSON (a path such as ``plan.action`` leads into objects),
    what ``pattern`` finds in it (its first group, where it has one), or the whole answer. ``targets`` are (kind,
    share) pairs in any unit, () for equal shares. ``by`` is "weight" or "repeat".
    """

    field: str | None = None
    pattern: str | None = None
    targets: tuple[tuple[str, float], ...] = ()
    by: str = "weight"

    @classmethod
    def of(cls, entry: BalanceEntry, place: str) -> "Balance":
        """Return what an entry of a meta file says; ``place`` is its ``file:key``.

        Raises:
            UserError: it names both a field and a pattern, a pattern that is none, or no kind of answer.
        """
        if entry.field and entry.pattern:
            raise UserError(f"{place}: has a field and a pattern. Keep one of them.")
        check_pattern(entry.pattern or "", f"{place}.pattern")
        if entry.to == {}:
            raise UserError(f'{place}.to: names no kind of answer. Name them, or write "equal".')
        targets = () if isinstance(entry.to, str) else tuple(entry.to.items())
        return cls(entry.field, entry.pattern, targets, entry.by)

    def as_entry(self) -> dict:
        """Return the key ``balance`` of a meta file that says this."""
        told = {key: value for key, value in (("field", self.field), ("pattern", self.pattern)) if value}
        return {**told, "to": dict(self.targets) or EQUAL, "by": self.by}

    def kind(self, answer: str) -> str | None:
        """Return the kind of an answer; None where it has no such field, or the pattern finds nothing."""
        if self.field:
            return field_value(answer, self.field)
        if self.pattern:
            return found_by(self.pattern, answer)
        return answer.strip()

    def factors(self, weights: dict[str, float], place: str) -> dict[str, float]:
        """Return what each kind of answer is multiplied with.

        By weight, their mean over all answers is 1, so that a balanced set counts as much beside others as before; by
        repeat, the least is 1, so that no row is lost.

        Args:
            weights: of all answers of each kind; "" for those without one, which have no factor.
            place: ``file:key`` of the balance, for messages.

        Raises:
            UserError: kinds of answers and targets do not fit, or a rare kind would be repeated too often.
        """
        counts = {kind: weight for kind, weight in weights.items() if kind and weight > 0}
        targets = dict(self.targets) or dict.fromkeys(counts, 1.0)
        advice = f"There are: {_listed(counts)}."
        if not counts:
            what = f"the field {self.field!r}" if self.field else f"the pattern {self.pattern!r}"
            raise UserError(f"{place}: no answer has {what}. Look at the answers, or remove the balance.")
        if len(counts) > MAX_CLASSES:
            raise UserError(f"{place}: there are {len(counts):,} kinds of answers. Name a field or a pattern.")
        for kind in (kind for kind in targets if kind not in counts):
            raise UserError(f"{place}.to: names {shorten(kind)}, which no answer is. {advice}")
        for kind in (kind for kind in counts if kind not in targets):
            raise UserError(f"{place}.to: lacks {shorten(kind)}, which {counts[kind]:g} answers are. {advice}")
        total, of_targets = sum(counts.values()), sum(targets.values())
        factors = {kind: targets[kind] / of_targets * total / count for kind, count in counts.items()}
        if self.by == "repeat":
            least = min(factors.values())
            factors = {kind: factor / least for kind, factor in factors.items()}
            kind, most = max(factors.items(), key=lambda item: item[1])
            if most > MAX_REPEAT_TIME:
                raise UserError(
                    f"{place}: rows of {shorten(kind)} would be repeated {most:,.0f} times, and the limit is "
                    f'{MAX_REPEAT_TIME:,}. Set "by": "weight".'
                )
        return factors


def field_value(answer: str, field: str) -> str | None:
    """Return a field of an answer that is a JSON object; a value that is not text as JSON, None if there is none."""
    try:
        value = nested_value(json.loads(answer), field)
    except (ValueError, KeyError):  # no JSON, or none with the field
        return None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _listed(counts: dict[str, float]) -> str:
    """Return the kinds of answers in words, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    named = [f"{shorten(kind, 40)} {count:g}" for kind, count in ordered[:12]]
    return ", ".join(named) + (f" and {len(counts) - 12:,} more" if len(counts) > 12 else "")


def add_weights(into: dict[str, float], weights: dict[str, float]) -> None:
    """Add the weights of kinds of answers to those that are known."""
    for kind, weight in weights.items():
        into[kind] = into.get(kind, 0.0) + weight


def weigh_kinds(row: Row, balance: Balance) -> dict[str, float]:
    """Return the weight of a row's answers of each kind; "" for those without one.

    Raises:
        RowError: the row is to be repeated by the kind of its answer, and has several answers.
    """
    answers = [turn.value for turn in row.turns if turn.role == "gpt"]
    if balance.by == "repeat" and len(answers) > 1:
        what = f"has {len(answers)} answers, and the balance of its data set repeats rows by the kind of their answer"
        raise RowError(row.where, "answers of a repeated row", what, 'Set "by": "weight" in the meta file')
    weights: dict[str, float] = {}
    for answer, weight in zip(answers, row.weights or [1.0] * len(answers), strict=True):
        add_weights(weights, {balance.kind(answer) or "": weight})
    return weights
