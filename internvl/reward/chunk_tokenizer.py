"""The scorer's tokenizer without its Java in every call: each chunk between blanks is asked once and remembered.

The Penn Treebank tokenizer of CIDEr, BLEU and ROUGE is a Java program that takes 0.4 s to start; a step of training on
the score has some milliseconds. What it makes of a chunk ("dog's", "black,") does not depend on its neighbours, but
for rare cases such as "5 1/2"; tests compare whole captions.
"""

from collections.abc import Iterable, Sequence

from internvl.evaluation.java_scorers import ptb_tokenize


class ChunkTokenizer:
    """Splits captions into the words that the scorers count: lower case, without punctuation."""

    def __init__(self) -> None:
        self._words: dict[str, tuple[str, ...]] = {}

    def learn(self, captions: Iterable[str]) -> None:
        """Ask the scorer's tokenizer about all chunks that are new, in one call.

        Raises:
            UserError: Java is missing or fails.
        """
        new = sorted({chunk for caption in captions for chunk in caption.split()} - self._words.keys())
        if new:
            self._words |= {chunk: tuple(words.split()) for chunk, words in zip(new, ptb_tokenize(new), strict=True)}

    def __call__(self, captions: Sequence[str]) -> list[list[str]]:
        """Return the words of each caption.

        Raises:
            UserError: as :meth:`learn`.
        """
        self.learn(captions)
        return [[word for chunk in caption.split() for word in self._words[chunk]] for caption in captions]
