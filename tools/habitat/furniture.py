"""The pieces of furniture: one builder per kind, each returning a mesh around the origin.

A piece stands on ``z = 0`` with its back towards ``+y`` and its front towards ``-y``. The caption's colour
word names the ``paint`` of its main surfaces; legs, handles, bedding, books, leaves and screens are neutral.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import palette
from .meshes import SIDE_FACES, Mesh, box, cushion, frustum, join, two_sided

GAP = 0.012  # width of the shadow gaps between doors, drawers and cushions


def _legs(half_width: float, half_depth: float, height: float, albedo, thickness: float = 0.05) -> list[Mesh]:
    """Four square legs standing under the corners of a (half_width, half_depth) rectangle."""
    legs = []
    for x in (-half_width, half_width - thickness):
        for y in (-half_depth, half_depth - thickness):
            legs.append(box((x, x + thickness), (y, y + thickness), (0.0, height), albedo, faces=SIDE_FACES))
    return legs


def _seat_row(half_width: float, front: float, back: float, z, count: int, albedo) -> list[Mesh]:
    """``count`` equal cushions side by side between ``-half_width`` and ``half_width``."""
    edges = np.linspace(-half_width, half_width, count + 1)
    return [
        cushion((low + GAP / 2, high - GAP / 2), (front, back), z, albedo)
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]


def sofa(paint: np.ndarray, rng: np.random.Generator) -> Mesh:
    """A two- or three-seat sofa: low, wide, with arms and a row of cushions."""
    half, depth, back = rng.uniform(0.85, 1.05), rng.uniform(0.42, 0.47), rng.uniform(0.78, 0.88)
    count, arm = int(rng.integers(2, 4)), 0.17
    inner, shade = half - arm, paint * 0.8
    parts = [
        box((-half, half), (-depth, depth), (0.1, 0.27), shade),
        cushion((-half, half), (depth - 0.2, depth), (0.27, back), paint),
        cushion((-half, -inner), (-depth, depth - 0.2), (0.27, 0.6), paint),
        cushion((inner, half), (-depth, depth - 0.2), (0.27, 0.6), paint),
        *_seat_row(inner, -depth - 0.02, depth - 0.2, (0.27, 0.44), count, paint),
        *_seat_row(inner, depth - 0.36, depth - 0.2, (0.44, back - 0.05), count, paint * 0.92),
        *_legs(half - 0.05, depth - 0.05, 0.1, palette.DARK_WOOD),
    ]
    return join(parts)


def armchair(paint: np.ndarray, rng: np.random.Generator) -> Mesh:
    """A single-seat armchair: as deep as a sofa, high-backed, on tall wooden legs."""
    half, depth, back = rng.uniform(0.4, 0.45), rng.uniform(0.38, 0.43), rng.uniform(0.96, 1.06)
    inner = half - 0.13
    parts = [
        box((-half, half), (-depth, depth), (0.2, 0.32), paint * 0.8),
        cushion((-half, half), (depth - 0.18, depth), (0.32, back), paint, bevel=0.06),
        cushion((-half, -inner), (-depth, depth - 0.18), (0.32, 0.62), paint),
        cushion((inner, half), (-depth, depth - 0.18), (0.32, 0.62), paint),
        cushion((-inner + 0.01, inner - 0.01), (-depth - 0.02, depth - 0.18), (0.32, 0.48), paint * 0.92),
        *_legs(half - 0.04, depth - 0.04, 0.2, palette.WOOD, 0.06),
    ]
    return join(parts)


def bed(paint: np.ndarray, rng: np.random.Generator) -> Mesh:
    """A bed with its headboard at the back; the blanket and the headboard carry the colour."""
    half, length = rng.uniform(0.65, 0.8), rng.uniform(0.98, 1.04)
    fold = rng.uniform(0.38, 0.5)  # y where the blanket ends and the sheet begins
    head = rng.uniform(0.95, 1.12)
    parts = [
        box((-half, half), (-length, length), (0.1, 0.28), palette.WOOD),
        cushion((-half + 0.02, half - 0.02), (-length + 0.02, length - 0.06), (0.28, 0.5), palette.LINEN),
        cushion((-half - 0.01, half + 0.01), (-length - 0.01, fold), (0.2, 0.535), paint, bevel=0.05),
        cushion((-half - 0.012, half + 0.012), (fold - 0.02, fold + 0.16), (0.2, 0.55), palette.LINEN * 0.9, 0.05),
        box((-half - 0.03, half + 0.03), (length - 0.06, length), (0.0, head), paint * 0.9),
        box((-half + 0.06, half - 0.06), (length - 0.085, length - 0.06), (0.55, head - 0.08), paint),
        *_legs(half - 0.03, length - 0.03, 0.1, palette.WOOD, 0.07),
    ]
    for centre in (-half / 2, half / 2):
        spread = half / 2 - 0.07
        parts.append(
            cushion(
                (centre - spread, centre + spread),
                (length - 0.42, length - 0.1),
                (0.49, 0.62),
                palette.LINEN,
                0.06,
            )
        )
    return join(parts)


def table(paint: np.ndarray, rng: np.random.Generator) -> Mesh:
    """A painted dining table on four legs, sometimes with a bowl on it."""
    half, depth, height = rng.uniform(0.6, 0.8), rng.uniform(0.38, 0.46), rng.uniform(0.7, 0.78)
    apron = (-half + 0.07, half - 0.07), (-depth + 0.07, depth - 0.07)
    parts = [
        box((-half, half), (-depth, depth), (height - 0.05, height), paint),
        box(*apron, (height - 0.15, height - 0.05), paint * 0.7),
        *_legs(half - 0.04, depth - 0.04, height - 0.05, paint * 0.85, 0.075),
    ]
    if rng.random() < 0.6:
        at = rng.uniform(-0.3, 0.3), rng.uniform(-0.1, 0.1)
        parts.append(frustum(at, (height, height + 0.09), (0.07, 0.15), palette.LINEN * 0.85, 10, top=False))
        parts.append(frustum(at, (height + 0.07, height + 0.075), (0.14, 0.14), palette.WOOD * 0.8, 10))
    return join(parts)


def chair(paint: np.ndarray, rng: np.random.Generator) -> Mesh:
    """A dining chair: coloured seat and back panel on a slim wooden frame."""
    half, seat, back = rng.uniform(0.23, 0.26), rng.uniform(0.44, 0.48), rng.uniform(0.96, 1.06)
    posts = [box((x, x + 0.045), (half - 0.045, half), (seat, back), palette.WOOD) for x in (-half, half - 0.045)]
    panel = (-half + 0.01, half - 0.01), (half - 0.075, half - 0.03)
    parts = [
        cushion((-half, half), (-half - 0.01, half - 0.05), (seat - 0.02, seat + 0.06), paint, 0.02),
        box((-half, half), (-half, half), (seat - 0.05, seat - 0.02), palette.WOOD),
        cushion(*panel, (seat + 0.16, back + 0.02), paint, 0.02),
        *posts,
        *_legs(half, half, seat - 0.05, palette.WOOD, 0.045),
    ]
    return join(parts)


def lamp(paint: np.ndarray, rng: np.random.Generator) -> Mesh:
    """A lit floor lamp; the large conical shade carries the colour."""
    height, width, drop = rng.uniform(1.5, 1.7), rng.uniform(0.29, 0.34), rng.uniform(0.4, 0.48)
    narrow = width * rng.uniform(0.6, 0.8)
    centre, low = (0.0, 0.0), height - drop
    return join(
        [
            frustum(centre, (0.0, 0.04), (0.18, 0.17), palette.METAL * 0.4, 12),
            frustum(centre, (0.04, height - 0.1), (0.02, 0.02), palette.METAL * 0.5, 6, top=False),
            frustum(centre, (low, height), (width, narrow), paint, 16, glow=0.3),
            frustum(centre, (low - 0.025, low), (width, width), paint * 0.6, 16, top=False),
        ]
    )


def cabinet(paint: np.ndarray, rng: np.random.Generator) -> Mesh:
    """A chest of drawers, about hip-high."""
    half, depth, height = rng.uniform(0.45, 0.62), rng.uniform(0.23, 0.26), rng.uniform(0.8, 0.98)
    rows, columns = int(rng.integers(3, 5)), int(rng.integers(1, 3))
    parts = [
        box((-half + 0.03, half - 0.03), (-depth + 0.04, depth), (0.0, 0.09), palette.DARK_WOOD * 0.6),
        box((-half, half), (-depth, depth), (0.09, height - 0.04), paint * 0.55),
        box((-half - 0.015, half + 0.015), (-depth - 0.03, depth), (height - 0.04, height), paint),
        box((-half, -half + 0.03), (-depth - 0.02, depth), (0.09, height - 0.04), paint),
        box((half - 0.03, half), (-depth - 0.02, depth), (0.09, height - 0.04), paint),
    ]
    xs = np.linspace(-half + 0.03, half - 0.03, columns + 1)
    zs = np.linspace(0.1, height - 0.045, rows + 1)
    for left, right in zip(xs[:-1], xs[1:], strict=True):
        for low, high in zip(zs[:-1], zs[1:], strict=True):
            x, z = (left + GAP, right - GAP), (low + GAP, high - GAP)
            parts.append(box(x, (-depth - 0.018, -depth), z, paint, faces=("front", "top")))
            middle, level = (left + right) / 2, (low + high) / 2
            handle = (middle - 0.07, middle + 0.07), (-depth - 0.045, -depth - 0.018), (level, level + 0.025)
            parts.append(box(*handle, palette.METAL, faces=("front", "top")))
    return join(parts)


def bookshelf(paint: np.ndarray, rng: np.random.Generator) -> Mesh:
    """A tall open shelf filled with books in paper and leather tones."""
    half, depth, height = rng.uniform(0.4, 0.52), rng.uniform(0.15, 0.18), rng.uniform(1.65, 1.9)
    board, levels = 0.045, int(rng.integers(4, 6))
    parts = [
        box((-half, -half + board), (-depth, depth), (0.0, height), paint),
        box((half - board, half), (-depth, depth), (0.0, height), paint),
        box((-half, half), (depth - 0.02, depth), (0.0, height), paint * 0.4),
        box((-half, half), (-depth, depth), (0.0, 0.09), paint),
    ]
    shelves = np.linspace(0.09, height - board, levels + 1)
    for z in shelves[1:]:
        parts.append(box((-half, half), (-depth, depth), (z, z + board), paint))
    room = shelves[1] - shelves[0] - board
    for low in (shelves[0], *(shelves[1:-1] + board)):
        x = -half + board + rng.uniform(0.0, 0.05)
        while x < half - board - rng.uniform(0.06, 0.3):
            wide = min(rng.uniform(0.07, 0.16), half - board - x)
            tall = room * rng.uniform(0.55, 0.85)
            tone = palette.BOOKS[rng.integers(len(palette.BOOKS))] * rng.uniform(0.6, 0.8)
            spot = (x, x + wide - 0.006), (-depth + 0.05, depth - 0.02), (low, low + tall)
            parts.append(box(*spot, tone, faces=("front", "top")))
            x += wide
    return join(parts)


def planter(paint: np.ndarray, rng: np.random.Generator) -> Mesh:
    """A leafy plant in a large pot; the pot carries the colour."""
    radius, height = rng.uniform(0.23, 0.27), rng.uniform(0.42, 0.52)
    centre = (0.0, 0.0)
    parts = [
        frustum(centre, (0.0, height - 0.07), (radius * 0.72, radius * 0.97), paint, 14, top=False),
        frustum(centre, (height - 0.07, height), (radius * 1.06, radius * 1.08), paint * 1.05, 14, top=False),
        frustum(centre, (height - 0.02, height - 0.015), (radius * 1.05, radius * 1.05), palette.SOIL, 14),
    ]
    leaves, start = int(rng.integers(13, 18)), rng.uniform(0, 2 * np.pi)
    for i in range(leaves):
        angle = start + i * 2.4 + rng.uniform(-0.2, 0.2)
        lean = 0.12 + 0.5 * (i + 0.5) / leaves
        stretch = rng.uniform(0.6, 0.8) * (1.1 - 0.35 * lean)
        parts.append(_leaf(angle, lean, stretch, height - 0.02, palette.LEAVES[i % 3]))
    return join(parts)


def _leaf(angle: float, lean: float, stretch: float, base: float, albedo) -> Mesh:
    """A leaf of two kites in a row: rising outwards first, then bending over by its own weight."""
    outward = np.array([np.cos(angle), np.sin(angle), 0.0])
    across = np.array([-np.sin(angle), np.cos(angle), 0.0]) * 0.1 * (0.6 + stretch)
    rise = np.array([0.0, 0.0, 1.0])
    root = rise * base
    knee = root + stretch * (outward * lean * 0.7 + rise * (0.85 - lean * 0.35))
    tip = knee + stretch * (outward * (0.15 + lean * 0.45) + rise * (0.3 - lean * 0.9))
    lower = np.stack([root, knee + across, knee, knee - across])
    upper = np.stack([knee + across, tip, tip, knee - across])
    return two_sided(np.stack([lower, upper]), albedo)


def television(paint: np.ndarray, rng: np.random.Generator) -> Mesh:
    """A flat screen in a coloured frame on a low coloured stand."""
    half, depth, height = rng.uniform(0.68, 0.82), rng.uniform(0.2, 0.23), rng.uniform(0.44, 0.52)
    wide, tall = rng.uniform(0.56, 0.64), rng.uniform(0.66, 0.74)
    low, rim = height + 0.07, 0.05
    parts = [
        box((-half, half), (-depth, depth), (0.1, height), paint),
        *_legs(half - 0.05, depth - 0.03, 0.1, palette.DARK_WOOD),
        box((-0.2, 0.2), (-0.08, 0.1), (height, height + 0.015), palette.METAL * 0.4),
        box((-0.06, 0.06), (0.0, 0.05), (height, low + 0.05), palette.METAL * 0.4),
        box((-wide, wide), (-0.03, 0.04), (low, low + tall), paint),
        box((-wide + rim, wide - rim), (-0.036, -0.03), (low + rim, low + tall - rim), palette.SCREEN),
    ]
    for x in (-half + 0.03, GAP / 2):
        door = (x, x + half - 0.03 - GAP / 2), (-depth - 0.015, -depth), (0.12, height - 0.03)
        parts.append(box(*door, paint * 0.9, faces=("front", "top")))
    bottom, top = low + rim, low + tall - rim
    gleam = np.array([[-wide + 0.2, bottom], [-wide + 0.45, bottom], [0.1, top], [-0.1, top]])
    quad = np.column_stack([gleam[:, 0], np.full(4, -0.04), gleam[:, 1]])
    parts.append(two_sided(quad[None], palette.SCREEN_GLEAM))
    return join(parts)


def wardrobe(paint: np.ndarray, rng: np.random.Generator) -> Mesh:
    """A tall closed wardrobe with two panelled doors."""
    half, depth, height = rng.uniform(0.55, 0.72), rng.uniform(0.27, 0.31), rng.uniform(1.9, 2.1)
    parts = [
        box((-half + 0.03, half - 0.03), (-depth + 0.03, depth), (0.0, 0.1), palette.DARK_WOOD * 0.6),
        box((-half, half), (-depth, depth), (0.1, height - 0.07), paint * 0.8),
        box((-half - 0.03, half + 0.03), (-depth - 0.05, depth), (height - 0.07, height), paint),
    ]
    for x in ((-half + 0.02, -GAP / 2), (GAP / 2, half - 0.02)):
        parts.append(box(x, (-depth - 0.02, -depth), (0.13, height - 0.09), paint, faces=("front", "top")))
        inset = x[0] + 0.08, x[1] - 0.08
        for z in ((0.22, height * 0.45), (height * 0.45 + 0.1, height - 0.18)):
            parts.append(box(inset, (-depth - 0.028, -depth - 0.02), z, paint * 0.82, faces=("front", "top")))
    for x in (-0.065, 0.04):
        handle = (x, x + 0.025), (-depth - 0.06, -depth - 0.03), (height * 0.42, height * 0.55)
        parts.append(box(*handle, palette.METAL))
    return join(parts)


BUILDERS: dict[str, Callable[[np.ndarray, np.random.Generator], Mesh]] = {
    "armchair": armchair,
    "bed": bed,
    "bookshelf": bookshelf,
    "cabinet": cabinet,
    "chair": chair,
    "lamp": lamp,
    "planter": planter,
    "sofa": sofa,
    "table": table,
    "television": television,
    "wardrobe": wardrobe,
}
KINDS = tuple(BUILDERS)


def build(kind: str, colour: str, rng: np.random.Generator) -> Mesh:
    """A randomly proportioned ``kind`` painted in a slight variation of the named ``colour``."""
    paint = palette.NAMED_COLOURS[colour] * rng.uniform(0.9, 1.06)
    return BUILDERS[kind](paint, rng)
