"""What sampled answers are worth: rewards by name and weight, and those of a user's own file."""

import importlib.util
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from internvl.errors import UserError, shorten
from internvl.evaluation.matching import KINDS, Match
from internvl.reward.chunk_tokenizer import ChunkTokenizer
from internvl.reward.cider_d import CiderD, Key, count_ngrams

FREQUENCIES = "document_frequencies.json.gz"
NEEDS_WEIGHT = "Give NAME:WEIGHT, such as CIDEr-D:1.0"


@dataclass(frozen=True)
class Answers:
    """What was sampled for one prompt: ``texts``, and which of them came to their end; ``key`` is the prompt's."""

    key: Key
    references: tuple[str, ...]
    texts: tuple[str, ...]
    ended: tuple[bool, ...]


class Reward(Protocol):
    """What answers are worth, each as a number; higher is better."""

    def __call__(self, sampled: Sequence[Answers]) -> np.ndarray:
        """Return float64 (prompts, answers of a prompt)."""


class CiderDReward:
    """CIDEr-D with the document frequencies of all references of the training."""

    def __init__(self, references: Mapping[Key, Sequence[str]]):
        self.tokenizer = ChunkTokenizer()
        self.tokenizer.learn(caption for captions in references.values() for caption in captions)
        words = {key: self.tokenizer(captions) for key, captions in references.items()}
        self.scorer = CiderD(words)

    @property
    def signature(self) -> str:
        """Which CIDEr this is: tokens, form, and whose document frequencies, as arXiv:2305.12254 writes them."""
        return f"PTB+{self.scorer.signature}+df[{self.scorer.num_images} images of the training]"

    def __call__(self, sampled: Sequence[Answers]) -> np.ndarray:
        words = iter(self.tokenizer([text for answers in sampled for text in answers.texts]))
        return np.array(
            [[self.scorer.score(answers.key, next(words), ended) for ended in answers.ended] for answers in sampled]
        )


class Bleu4Reward:
    """Sentence BLEU-4 (Papineni et al. 2002) with the closest reference length, each precision's counts plus one."""

    def __init__(self, references: Mapping[Key, Sequence[str]]):
        self.tokenizer = ChunkTokenizer()
        self.tokenizer.learn(caption for captions in references.values() for caption in captions)

    def __call__(self, sampled: Sequence[Answers]) -> np.ndarray:
        return np.array([self._score(answers) for answers in sampled])

    def _score(self, answers: Answers) -> list[float]:
        references = self.tokenizer(answers.references)
        return [sentence_bleu(words, references) for words in self.tokenizer(answers.texts)]


def sentence_bleu(words: Sequence[str], references: Sequence[Sequence[str]], max_n: int = 4) -> float:
    """Return BLEU of one sentence; matches and n-grams of more than one word count one more (Lin & Och 2004).

    Args:
        words: of the answer.
        references: of the references.
        max_n: longest n-gram.
    """
    if not words:
        return 0.0
    log_precision = 0.0
    for n in range(1, max_n + 1):
        own, most = count_ngrams(words, [n]), Counter()
        for reference in references:
            most |= count_ngrams(reference, [n])
        matched = (own & most).total()
        smooth = 1 if n > 1 else 0
        if matched + smooth == 0:
            return 0.0
        log_precision += math.log((matched + smooth) / (own.total() + smooth)) / max_n
    closest = min((abs(len(reference) - len(words)), len(reference)) for reference in references)[1]
    return math.exp(log_precision + min(0.0, 1 - closest / len(words)))


class ExactReward:
    """1 for an answer that ended and is one of the references, but for blanks at its ends; 0 for any other."""

    def __init__(self, references: Mapping[Key, Sequence[str]]):
        pass  # each prompt comes with its own

    def __call__(self, sampled: Sequence[Answers]) -> np.ndarray:
        return np.array(
            [
                [
                    float(ended and text.strip() in {reference.strip() for reference in answers.references})
                    for text, ended in zip(answers.texts, answers.ended, strict=True)
                ]
                for answers in sampled
            ]
        )


class JsonValidReward:
    """1 for an answer that is a JSON object, 0 for any other."""

    def __init__(self, references: Mapping[Key, Sequence[str]]):
        pass

    def __call__(self, sampled: Sequence[Answers]) -> np.ndarray:
        return np.array([[float(_is_object(text)) for text in answers.texts] for answers in sampled])


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


class MatchReward:
    """1 for an answer that ended and says what a reference does, as ``evaluate.sh … --match`` compares them; or 0."""

    def __init__(self, match: Match):
        self.match = match

    def __call__(self, sampled: Sequence[Answers]) -> np.ndarray:
        return np.array([self._score(answers) for answers in sampled])

    def _score(self, answers: Answers) -> list[float]:
        wanted = [self.match.value(reference) for reference in answers.references]
        return [
            float(ended and self.match.is_right(self.match.value(text), wanted))
            for text, ended in zip(answers.texts, answers.ended, strict=True)
        ]


class OwnReward:
    """A function of the user's: ``function(answers, references, ended)`` returns a number for each answer."""

    def __init__(self, file: str, name: str):
        self.place = f"--reward {file}:{name}"
        path = Path(file)
        if not path.is_file():
            raise UserError(f"{self.place}: there is no file {file}. Name a Python file and a function in it.")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = getattr(module, name, None)
        if not callable(function):
            raise UserError(
                f"{self.place}: {file} has no function {name}. Name one that takes (answers, references, "
                "ended) and returns a number for each answer."
            )
        self.function: Callable[..., Sequence[float]] = function

    def __call__(self, sampled: Sequence[Answers]) -> np.ndarray:
        return np.array([self._score(answers) for answers in sampled], np.float64)

    def _score(self, answers: Answers) -> list[float]:
        values = self.function(list(answers.texts), list(answers.references), list(answers.ended))
        try:
            numbers = [float(value) for value in values]
        except (TypeError, ValueError) as err:
            raise UserError(f"{self.place}: returned {shorten(values, 60)}. Return a number for each answer.") from err
        if len(numbers) != len(answers.texts) or not all(map(math.isfinite, numbers)):
            raise UserError(
                f"{self.place}: returned {shorten(values, 60)} for {len(answers.texts)} answers. Return a finite "
                "number for each."
            )
        return numbers


REWARDS: dict[str, Callable[[Mapping[Key, Sequence[str]]], Reward]] = {
    "CIDEr-D": CiderDReward,
    "BLEU-4": Bleu4Reward,
    "exact": ExactReward,
    "json-valid": JsonValidReward,
}


# Of --match, but for exact, which has a name of its own here.
MATCH_KINDS = tuple(kind.partition(":")[0] for kind in KINDS[1:])


@dataclass(frozen=True)
class RewardSpec:
    """One ``--reward``: a name of :data:`REWARDS`, what ``--match`` takes, or ``file.py:function``; and its weight."""

    name: str
    weight: float

    @classmethod
    def parse(cls, text: str) -> "RewardSpec":
        """Return what ``NAME[:WEIGHT]`` or ``FILE.py:FUNCTION[:WEIGHT]`` says.

        Raises:
            UserError: it is neither.
        """
        name, weight = text, 1.0
        head, _, tail = text.rpartition(":")
        if head:
            try:
                name, weight = head, float(tail)
            except ValueError:
                name = text
        if not math.isfinite(weight) or weight == 0:
            raise UserError(f"--reward: {text!r} has the weight {tail}. {NEEDS_WEIGHT}.")
        kind, _, detail = name.partition(":")
        if kind in MATCH_KINDS:
            Match.parse(name, "--reward")
        elif name not in REWARDS and not (kind.endswith(".py") and detail):
            known = ", ".join([*REWARDS, *KINDS[1:]])
            raise UserError(f"--reward: {text!r} is not a reward. Give one of {known}, or FILE.py:FUNCTION.")
        return cls(name, weight)

    def open(self, references: Mapping[Key, Sequence[str]]) -> Reward:
        """Return the reward, made for prompts with these references.

        Raises:
            UserError: a file of the user's, or Java, is missing.
        """
        if self.name in REWARDS:
            return REWARDS[self.name](references)
        if self.name.partition(":")[0] in MATCH_KINDS:
            return MatchReward(Match.parse(self.name, "--reward"))
        return OwnReward(*self.name.split(":", 1))


class WeightedReward:
    """The sum of several rewards, each times its weight; the last parts are kept by name for the log."""

    def __init__(self, specs: Sequence[RewardSpec], references: Mapping[Key, Sequence[str]]):
        self.parts = [(spec, spec.open(references)) for spec in specs]

    def as_record(self) -> dict[str, dict[str, float | str]]:
        """Return the rewards by name, for the record of a run: their weights, and which CIDEr it is."""
        return {
            spec.name: {"weight": spec.weight}
            | ({"signature": reward.signature} if isinstance(reward, CiderDReward) else {})
            for spec, reward in self.parts
        }

    def save(self, folder: Path) -> None:
        """Write what rewards count by, for who wants to compute them again: document frequencies of CIDEr-D."""
        for _, reward in self.parts:
            if isinstance(reward, CiderDReward):
                reward.scorer.save_frequencies(folder / FREQUENCIES)

    def __call__(self, sampled: Sequence[Answers]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the rewards, float64 (prompts, answers), and each part's own before its weight."""
        by_name = {spec.name: reward(sampled) for spec, reward in self.parts}
        weighted = [spec.weight * by_name[spec.name] for spec, _ in self.parts]
        return np.sum(weighted, axis=0), by_name
