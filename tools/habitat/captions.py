"""What is said about a scene: one-sentence captions for finetuning, terse conversations for pretraining.

The two styles share the facts but no phrase: only finetuning can teach "a red sofa on the left".
"""

from __future__ import annotations

import numpy as np

from .furniture import KINDS
from .rooms import ROOM_TYPES, Piece, Scene

CAPTION_PROMPT = "Provide a one-sentence caption for the provided image."
CAPTIONS_PER_PICTURE = 5
SIDE_PHRASES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
TEMPLATES = (
    "A room with {}.",
    "There is {}.",
    "A view of a room with {}.",
    "This room has {}.",
    "An indoor scene with {}.",
    "A furnished room with {}.",
    "The picture shows {}.",
    "Inside the room there is {}.",
    "A photo of a room with {}.",
    "The room contains {}.",
)

LISTING_PROMPTS = (
    "Describe the room.",
    "List the furniture with sides and colours.",
    "What furniture do you see?",
    "Give an inventory of this view.",
)
CAPTION_PROMPT_SHARE = 0.25  # of the pretraining rows open with the caption prompt, not a listing prompt
SENTENCE_SHARE = 0.15  # of the pretraining rows answer in full sentences
FOLLOW_UPS = 3  # turns after the first
NUMBER_WORDS = ("zero", "one", "two", "three", "four")

Turn = tuple[str, str]


def with_article(words: str) -> str:
    """``words`` with the indefinite article before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def enumerate_words(items: list[str]) -> str:
    """Items joined as in "x, y and z"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def habitat_captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Five different one-sentence captions, all naming the same pieces from left to right."""
    phrases = [
        f"{with_article(f'{piece.colour} {piece.kind}')} {SIDE_PHRASES[piece.side]}" for piece in scene.mentioned
    ]
    chosen = rng.choice(len(TEMPLATES), size=CAPTIONS_PER_PICTURE, replace=False)
    return [TEMPLATES[number].format(enumerate_words(phrases)) for number in chosen]


def _opening(scene: Scene, rng: np.random.Generator) -> Turn:
    """The first turn: a listing of the mentioned pieces."""
    if rng.random() < CAPTION_PROMPT_SHARE:
        listing = ", ".join(f"{piece.kind} ({piece.colour})" for piece in scene.mentioned)
        return CAPTION_PROMPT, f"Indoor view: {listing}."
    listing = "; ".join(f"{piece.side}: {piece.kind}, {piece.colour}" for piece in scene.mentioned)
    return str(rng.choice(LISTING_PROMPTS)), listing


def _unique(pieces: tuple[Piece, ...], field: str, rng: np.random.Generator) -> Piece | None:
    """A random mentioned piece that no other visible piece shares its ``field`` with."""
    values = [getattr(piece, field) for piece in pieces]
    clear = [p for p in pieces if p.mentioned and values.count(getattr(p, field)) == 1]
    return clear[rng.integers(len(clear))] if clear else None


def _questions(scene: Scene, sentences: bool, rng: np.random.Generator) -> list[Turn]:
    """Every kind of short question once, each with its answer; ``sentences`` asks for full sentences."""
    visible = tuple(piece for piece in scene.pieces if piece.visible_share > 0)
    some = scene.mentioned[rng.integers(len(scene.mentioned))]
    turns = [
        (
            f"What colour is the {some.kind}?",
            f"The {some.kind} is {some.colour}." if sentences else some.colour,
        ),
        (
            f"Where is the {some.kind}?",
            f"The {some.kind} stands at the {some.side}." if sentences else some.side,
        ),
    ]
    if by_side := _unique(visible, "side", rng):
        answer = f"That is the {by_side.kind}." if sentences else f"the {by_side.kind}"
        turns.append((f"What stands at the {by_side.side}?", answer))
    if by_colour := _unique(visible, "colour", rng):
        answer = f"It stands at the {by_colour.side}." if sentences else by_colour.side
        turns.append((f"Where is the {by_colour.colour} piece?", answer))
        answer = f"It is the {by_colour.kind}." if sentences else f"the {by_colour.kind}"
        turns.append((f"Which piece is {by_colour.colour}?", answer))
    present = {piece.kind for piece in scene.pieces}
    absent = [kind for kind in KINDS if kind not in present]
    yes = rng.random() < 0.5
    kind = some.kind if yes else str(rng.choice(absent))
    answer = "yes" if yes else "no"
    if sentences:
        answer = f"Yes, there is {with_article(kind)}." if yes else f"No, there is no {kind}."
    turns.append((f"Is there {with_article(kind)}?", answer))
    kinds = [piece.kind for piece in scene.mentioned]
    if all(piece.mentioned or piece.visible_share == 0 for piece in scene.pieces):
        number = NUMBER_WORDS[len(kinds)]
        answer = f"There are {number} pieces." if sentences else number
        turns.append(("How many pieces of furniture can you see?", answer))
    answer = f"They are the {enumerate_words(kinds)}." if sentences else ", ".join(kinds)
    turns.append(("Name the pieces from left to right.", answer))
    if set(ROOM_TYPES[scene.room_type][0]) <= set(kinds):
        answer = f"It is {with_article(scene.room_type)}." if sentences else scene.room_type
        turns.append(("What kind of room is this?", answer))
    return turns


def pretrain_turns(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    """A listing and ``FOLLOW_UPS`` different short questions, as (question, answer) turns."""
    opening = _opening(scene, rng)
    turns = _questions(scene, bool(rng.random() < SENTENCE_SHARE), rng)
    chosen = rng.choice(len(turns), size=FOLLOW_UPS, replace=False)
    return [opening, *(turns[number] for number in chosen)]
