"""How captions are worded: what n-gram scores do not show, and training on them changes.

Training on CIDEr narrows the vocabulary and, where the end of a sentence is not part of the score, teaches captions
that break off ("a man on a"); see arXiv:2305.12254.
"""

from collections.abc import Iterable
from dataclasses import dataclass

# With these no sentence ends: articles, prepositions and auxiliary verbs, as the self-critical captioners count them.
NO_LAST_WORD = frozenset(
    "a an the in on at of to for from with by near under above behind before after upon into".split()
    + "and or is are am was were".split()
)


@dataclass(frozen=True)
class Wording:
    """What captions consist of.

    ``distinct_words`` is how many different words all captions have together, ``words_per_caption`` their mean length,
    ``distinct_captions`` the share of captions that are different, and ``broken_off`` the share of those that end with
    a word with which no sentence ends.
    """

    distinct_words: int
    words_per_caption: float
    distinct_captions: float
    broken_off: float

    @classmethod
    def of(cls, captions: Iterable[str]) -> "Wording":
        """Return the wording of tokenised captions: words in small letters with blanks between; at least one."""
        words = [caption.split() for caption in captions]
        return cls(
            distinct_words=len({word for caption in words for word in caption}),
            words_per_caption=sum(map(len, words)) / len(words),
            distinct_captions=len({tuple(caption) for caption in words}) / len(words),
            broken_off=sum(bool(caption) and caption[-1] in NO_LAST_WORD for caption in words) / len(words),
        )


def wording_rows(*wordings: Wording) -> list[tuple[str, *tuple[str, ...]]]:
    """Return the rows of a table with a column for each wording."""
    return [
        ("distinct words", *(f"{one.distinct_words:,}" for one in wordings)),
        ("words a caption", *(f"{one.words_per_caption:.1f}" for one in wordings)),
        ("distinct captions", *(f"{one.distinct_captions:.0%}" for one in wordings)),
        ("broken off", *(f"{one.broken_off:.1%}" for one in wordings)),
    ]
