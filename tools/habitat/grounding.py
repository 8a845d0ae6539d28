"""Scoring captions by what they say is where: F1 over (colour, kind, side) triples against the scenes."""

from __future__ import annotations

import random
import re

from .furniture import KINDS
from .layout import SIDES
from .palette import NAMED_COLOURS

Triple = tuple[str, str, str]
SYNONYMS = {"center": "middle", "centre": "middle", "tv": "television", "couch": "sofa"}
_WORD = re.compile(r"[a-z]+|[.;,]")


def _words(text: str) -> list[str]:
    """Words and punctuation in lower case, with synonyms resolved and stuttering ("red red sofa") removed."""
    words = [SYNONYMS.get(word, word) for word in _WORD.findall(text.lower())]
    return [word for word, before in zip(words, ["", *words], strict=False) if word != before]


def _read(words: list[str], sides_first: bool) -> set[Triple]:
    """The triples of a caption that names each piece's side before it, or after it."""
    at_kinds = [i for i, word in enumerate(words) if word in KINDS]
    triples = set()
    for start, at, end in zip([0, *at_kinds], at_kinds, [*at_kinds[1:], len(words)], strict=False):
        colours = [word for word in words[start:at] if word in NAMED_COLOURS]
        near = reversed(words[start:at]) if sides_first else words[at:end]
        side = next((word for word in near if word in SIDES), None)
        if colours and side:
            triples.add((colours[-1], words[at], side))
    return triples


def parse_caption(text: str) -> set[Triple]:
    """The (colour, kind, side) triples a caption states.

    Each piece takes the last colour named since the piece before it, and the first side named before the
    piece after it ("a red sofa on the left"). Captions that make more sense with the sides before the pieces
    ("on the left a red sofa") are read so. Pieces without a colour or a side give no triple.
    """
    words = _words(text)
    return max(_read(words, sides_first=False), _read(words, sides_first=True), key=len)


def mentioned_triples(pieces: list[dict]) -> set[Triple]:
    """The triples a perfect caption of a scene (its list in ``scenes.json``) states."""
    return {(p["colour"], p["kind"], p["side"]) for p in pieces if p["mentioned"]}


def grounding_f1(captions: dict[int, str], scenes: dict[int, list[dict]]) -> dict[str, float]:
    """Micro-averaged precision, recall and F1 of the triples; every captioned image needs a scene."""
    hits = stated = true = 0
    for image_id, caption in captions.items():
        found, expected = parse_caption(caption), mentioned_triples(scenes[image_id])
        hits += len(found & expected)
        stated += len(found)
        true += len(expected)
    precision = hits / stated if stated else 0.0
    recall = hits / true if true else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


def swapped_f1(captions: dict[int, str], scenes: dict[int, list[dict]], seed: int = 0) -> dict[str, float]:
    """The same scores with every caption held against another image's scene.

    This is what captions that sound right but ignore the image would get. The images are shuffled into
    one ring and each caption moves on by one, so that none keeps its own image.
    """
    ring = sorted(captions)
    if len(ring) < 2:
        raise ValueError("swapping captions needs at least two of them")
    random.Random(seed).shuffle(ring)
    following = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    return grounding_f1(captions, {image_id: scenes[following[image_id]] for image_id in ring})
