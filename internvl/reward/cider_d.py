"""CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726) of answers against fixed references, fast enough to train on.

With the document frequencies of the references themselves and without the end of sentence, values are those of
pycocoevalcap's ``Cider``, which is this variant: clipped counts, and a penalty of other lengths.
"""

import gzip
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

MAX_N = 4
SIGMA = 6.0  # of the penalty, in words
SCALE = 10.0
END = "<end>"

Key = int | str
Ngrams = Counter[tuple[str, ...]]
# A caption's n-grams weighted by tf-idf, and its norm, for each n; and its length as the scorer counts it, in bigrams.
Vectors = tuple[list[dict[tuple[str, ...], float]], list[float], int]


def count_ngrams(words: Sequence[str], sizes: Iterable[int] = range(1, MAX_N + 1)) -> Ngrams:
    """Return how often each n-gram of ``sizes`` words occurs; by default of 1 to 4."""
    return Counter(tuple(words[start : start + n]) for n in sizes for start in range(len(words) - n + 1))


class CiderD:
    """The score of an answer against the references of its image.

    ``references`` are the words of each reference of each image. N-grams weigh by how few images have them. With
    ``with_end``, a sentence's end counts as its last word: without it, training on the score learns answers that break
    off where an ending would cost ("a man on a"), worth up to +4 points that no reader would give (arXiv:2305.12254).
    """

    def __init__(self, references: Mapping[Key, Sequence[Sequence[str]]], *, with_end: bool = True):
        self.with_end = with_end
        counted = {
            key: [count_ngrams(self._ended(words, True)) for words in captions] for key, captions in references.items()
        }
        self.document_frequency = Counter(ngram for captions in counted.values() for ngram in set().union(*captions))
        self.num_images = len(counted)
        self._log_images = math.log(self.num_images) if self.num_images else 0.0
        self._references = {key: [self._vectors(ngrams) for ngrams in captions] for key, captions in counted.items()}

    @property
    def signature(self) -> str:
        """The variant of the score, in the words of arXiv:2305.12254's signatures."""
        end = "wInit" if self.with_end else "woInit"
        return f"STANDARD_{end}+Cider-D[n{MAX_N},s{SIGMA}]"

    def save_frequencies(self, file: Path) -> None:
        """Write ``{"signature", "images", "document_frequency": {n-gram: images}}`` as gzipped JSON, bytes alike."""
        counts = {" ".join(ngram): count for ngram, count in sorted(self.document_frequency.items())}
        content = {"signature": self.signature, "images": self.num_images, "document_frequency": counts}
        file.write_bytes(gzip.compress(json.dumps(content, ensure_ascii=False).encode(), mtime=0))

    def _ended(self, words: Sequence[str], ended: bool) -> Sequence[str]:
        return [*words, END] if self.with_end and ended else words

    def _vectors(self, ngrams: Ngrams) -> Vectors:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_N)]
        squares, length = [0.0] * MAX_N, 0
        for ngram, count in ngrams.items():
            n = len(ngram) - 1
            weight = count * (self._log_images - math.log(max(1, self.document_frequency[ngram])))
            vectors[n][ngram] = weight
            squares[n] += weight * weight
            length += count if n == 1 else 0
        return vectors, [math.sqrt(square) for square in squares], length

    def score(self, key: Key, words: Sequence[str], ended: bool = True) -> float:
        """Return the score of an answer about image ``key``; ``ended``: whether it came to its end by itself."""
        own = self._vectors(count_ngrams(self._ended(words, ended)))
        references = self._references[key]
        return sum(_similarity(own, reference) for reference in references) / len(references)

    def agreement(self, key: Key) -> list[float]:
        """Return, for each reference of image ``key``, its mean score against the others; 0 for a lone one."""
        references = self._references[key]
        return [
            sum(_similarity(own, other) for number, other in enumerate(references) if number != place)
            / max(1, len(references) - 1)
            for place, own in enumerate(references)
        ]


def _similarity(own: Vectors, other: Vectors) -> float:
    """Return the score of a caption against one reference."""
    vectors, norms, length = own
    of_reference, reference_norms, reference_length = other
    total = 0.0
    for n in range(MAX_N):
        if norms[n] and reference_norms[n]:
            theirs = of_reference[n]
            shared = sum(
                min(weight, theirs[ngram]) * theirs[ngram] for ngram, weight in vectors[n].items() if ngram in theirs
            )
            total += shared / (norms[n] * reference_norms[n])
    return SCALE * total * math.exp(-((length - reference_length) ** 2) / (2 * SIGMA**2)) / MAX_N
