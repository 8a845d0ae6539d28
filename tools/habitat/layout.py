"""Where furniture may stand: against the walls or free, in view, clear of the walls and of other pieces."""

from __future__ import annotations

import numpy as np

from .backdrop import Room
from .meshes import Mesh
from .rendering import Camera

SIDES = ("left", "middle", "right")
# How often a kind stands free in the room rather than with its back to a wall.
FREE_STANDING = {"table": 0.6, "chair": 0.75, "armchair": 0.4, "planter": 0.3, "lamp": 0.15}
CLEAR_OF_VIEWER = 1.55  # metres at the camera's end of the room kept free of furniture
WALL_GAP = (0.03, 0.08)  # metres between a piece and the wall behind it
PIECE_GAP = 0.06  # metres at least between two pieces
ATTEMPTS = 96  # candidate spots looked at per piece
MIN_IN_FRAME = 0.78  # share of a piece's bounding rectangle that must lie inside the image
BOUNDARY_MARGIN = 0.03  # of the image width, between a piece's centre and the boundary of two thirds


def side_of(centre_x: float) -> str:
    """The third of the image a position (0 left edge .. 1 right edge) lies in."""
    return SIDES[min(max(int(centre_x * 3), 0), 2)]


def near_boundary(centre_x: float) -> bool:
    """Whether a position is too close to the edge of a third for its side to be obvious."""
    return min(abs(centre_x - 1 / 3), abs(centre_x - 2 / 3)) < BOUNDARY_MARGIN


def footprints(low, high, x, y, heading) -> np.ndarray:
    """Floor corners (spots, 4, xy) of a bounding box turned by ``heading`` and moved to each (x, y)."""
    corners = np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]])
    cos, sin = np.cos(heading), np.sin(heading)
    across = corners[:, 0] * cos[:, None] - corners[:, 1] * sin[:, None] + x[:, None]
    along = corners[:, 0] * sin[:, None] + corners[:, 1] * cos[:, None] + y[:, None]
    return np.stack([across, along], axis=-1)


def overlap(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two rectangular footprints come closer than ``PIECE_GAP`` (separating-axis test)."""
    for rectangle in (first, second):
        for edge in (rectangle[1] - rectangle[0], rectangle[2] - rectangle[1]):
            axis = edge / np.hypot(*edge)
            a, b = first @ axis, second @ axis
            if a.max() + PIECE_GAP < b.min() or b.max() + PIECE_GAP < a.min():
                return False
    return True


def _candidate_spots(kind: str, low, high, room: Room, rng: np.random.Generator):
    """Random x, y and heading (radians) of ``ATTEMPTS`` spots, each at a wall or free in the room."""
    share = rng.random((5, ATTEMPTS))
    gap = high[1] + WALL_GAP[0] + (WALL_GAP[1] - WALL_GAP[0]) * share[0]
    half = max(high[0], -low[0]) + 0.05
    along_back = half + share[1] * (room.width - 2 * half)
    along_side = CLEAR_OF_VIEWER + half + share[1] * max(room.depth - CLEAR_OF_VIEWER - 2 * half, 0.0)
    left, right = share[2] < 0.27, share[2] > 0.73
    x = np.where(left, gap, np.where(right, room.width - gap, along_back))
    y = np.where(left | right, along_side, room.depth - gap)
    heading = np.where(left, np.pi / 2, np.where(right, -np.pi / 2, 0.0))
    free = share[3] < FREE_STANDING.get(kind, 0.0)
    x = np.where(free, 0.5 + share[1] * (room.width - 1.0), x)
    y = np.where(free, 1.9 + share[4] * (room.depth - 2.4), y)
    turn = 2.4 if kind == "chair" else 0.25
    return x, y, heading + np.where(free, turn * (2 * share[0] - 1), 0.0)


def _in_frame(low, high, spot: np.ndarray, height: float, camera: Camera) -> bool:
    """Whether enough of a placed bounding box (floor corners ``spot``) lies inside the image."""
    box = np.concatenate([np.column_stack([spot, np.full(4, z)]) for z in (0.0, height)])
    points = camera.project(box, 1)
    start, end = points.min(axis=0), points.max(axis=0)
    inner = np.clip(end, 0, 1) - np.clip(start, 0, 1)
    return bool(np.prod(inner / (end - start)) >= MIN_IN_FRAME)


def find_spot(kind: str, mesh: Mesh, side: str, room: Room, camera: Camera, taken, rng) -> tuple | None:
    """A place for a piece in the wanted third of the image, clear of the footprints in ``taken``.

    Returns (x, y, heading) and the footprint there, or None where no candidate fits.
    """
    low, high = mesh.bounds
    x, y, heading = _candidate_spots(kind, low, high, room, rng)
    corners = footprints(low, high, x, y, heading)
    limit = np.array([room.width - 0.02, room.depth - 0.02])
    inside = ((corners > [0.02, CLEAR_OF_VIEWER]) & (corners < limit)).all(axis=(1, 2))
    centres = camera.project(np.column_stack([x, y, np.full(ATTEMPTS, high[2] / 2)]), 1)[:, 0]
    thirds = np.abs(centres - (SIDES.index(side) + 0.5) / 3) < 1 / 6 - BOUNDARY_MARGIN
    for i in np.flatnonzero(inside & thirds):
        if not _in_frame(low, high, corners[i], high[2], camera):
            continue
        if not any(overlap(corners[i], other) for other in taken):
            return (x[i], y[i], heading[i]), corners[i]
    return None
