"""Quad meshes and the few solids every piece of furniture and every room is made of.

Lengths are metres. The frame is right-handed with ``x`` to the right, ``y`` into the room and ``z`` up.
Quads list their corners counter-clockwise as seen from outside, so the outward normal follows from the
corner order; a triangle is a quad whose last corner is repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Corners of a box are numbered by x + 2 y + 4 z with each coordinate 0 (low) or 1 (high).
BOX_CORNERS = np.array([[i & 1, (i >> 1) & 1, (i >> 2) & 1] for i in range(8)], dtype=bool)
BOX_FACES = {
    "bottom": (0, 2, 3, 1),
    "top": (4, 5, 7, 6),
    "front": (0, 1, 5, 4),
    "back": (2, 6, 7, 3),
    "left": (0, 4, 6, 2),
    "right": (1, 3, 7, 5),
}
ALL_FACES = tuple(BOX_FACES)
SIDE_FACES = ("front", "back", "left", "right")


@dataclass(frozen=True)
class Mesh:
    """Quads with one linear-light surface colour and one glow strength (0 unlit .. 1 self-lit) each."""

    quads: np.ndarray  # (faces, 4 corners, xyz)
    albedo: np.ndarray  # (faces, rgb)
    glow: np.ndarray  # (faces,)

    def placed(self, x: float, y: float, heading: float) -> Mesh:
        """The mesh turned counter-clockwise by ``heading`` radians about ``z`` and moved to (x, y)."""
        cos, sin = np.cos(heading), np.sin(heading)
        turn = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
        return Mesh(self.quads @ turn + np.array([x, y, 0.0]), self.albedo, self.glow)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest corner of the axis-aligned bounding box."""
        corners = self.quads.reshape(-1, 3)
        return corners.min(axis=0), corners.max(axis=0)


def join(meshes: list[Mesh]) -> Mesh:
    """One mesh holding the faces of all ``meshes``, in their order."""
    return Mesh(
        np.concatenate([mesh.quads for mesh in meshes]),
        np.concatenate([mesh.albedo for mesh in meshes]),
        np.concatenate([mesh.glow for mesh in meshes]),
    )


def from_quads(quads: np.ndarray, albedo, glow: float = 0.0) -> Mesh:
    """A mesh of ``quads`` that all have the same colour."""
    return Mesh(quads, np.tile(np.asarray(albedo, dtype=float), (len(quads), 1)), np.full(len(quads), glow))


def box(x, y, z, albedo, taper: float = 0.0, glow: float = 0.0, faces=ALL_FACES) -> Mesh:
    """A box spanning the (low, high) pairs ``x``, ``y``, ``z``; ``taper`` shrinks the top on every side."""
    low, high = np.array([x[0], y[0], z[0]]), np.array([x[1], y[1], z[1]])
    corners = np.where(BOX_CORNERS, high, low)
    if taper:
        corners[4:, :2] += np.where(BOX_CORNERS[4:, :2], -taper, taper)
    return from_quads(corners[[BOX_FACES[name] for name in faces]], albedo, glow)


def cushion(x, y, z, albedo, bevel: float = 0.035) -> Mesh:
    """A box with a bevelled upper rim, which catches the light like upholstery; it has no bottom face."""
    rim = z[1] - bevel
    return join(
        [
            box(x, y, (z[0], rim), albedo, faces=SIDE_FACES),
            box(x, y, (rim, z[1]), albedo, taper=bevel, faces=(*SIDE_FACES, "top")),
        ]
    )


def frustum(centre, z, radii, albedo, sides: int = 12, top: bool = True, glow: float = 0.0) -> Mesh:
    """An upright prism of ``sides`` (even) faces whose radius runs from ``radii[0]`` to ``radii[1]``."""
    angle = np.arange(sides) * (2 * np.pi / sides)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    low, high = (
        np.column_stack([np.asarray(centre) + radius * circle, np.full(sides, height)])
        for radius, height in zip(radii, z, strict=True)
    )
    following = np.roll(np.arange(sides), -1)
    quads = [np.stack([low, low[following], high[following], high], axis=1)]
    if top:
        quads.append(np.stack([high[[0, i, i + 1, i + 2]] for i in range(1, sides - 2, 2)]))
    return from_quads(np.concatenate(quads), albedo, glow)


def two_sided(quads: np.ndarray, albedo, glow: float = 0.0) -> Mesh:
    """Thin sheets such as leaves, given a face on either side."""
    return from_quads(np.concatenate([quads, quads[:, ::-1]]), albedo, glow)
