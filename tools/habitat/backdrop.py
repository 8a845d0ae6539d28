"""The room itself: walls, floor, skirting, window, door, picture and rug. None of it is ever captioned."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from . import palette
from .meshes import ALL_FACES, Mesh, box, from_quads, join

WALL_SIDES = ("left", "back", "right")
FACING_ROOM = {"left": "right", "back": "front", "right": "left"}  # the face of a wall's boxes that is seen


@dataclass(frozen=True)
class WallDetail:
    """How often a detail appears on a wall and the room it needs (metres)."""

    chance: float
    length: tuple[float, float]
    clearance: float  # kept free on both sides
    above: float  # furniture lower than this may stand in front


DETAILS = {
    "door": WallDetail(chance=0.35, length=(0.86, 0.86), clearance=0.12, above=0.3),
    "window": WallDetail(chance=0.75, length=(0.9, 1.3), clearance=0.38, above=0.9),
    "picture": WallDetail(chance=0.8, length=(0.4, 0.8), clearance=0.1, above=1.3),
}


@dataclass
class Room:
    """A box-shaped room from (0, 0, 0) to (width, depth, height) metres and the look of its surfaces."""

    width: float
    depth: float
    height: float
    wall: np.ndarray
    floor: np.ndarray
    pattern: str  # "planks", "tiles" or "carpet"
    lamps: list[np.ndarray] = field(default_factory=list)  # centres of lit lamp shades
    window: np.ndarray | None = None  # centre of the window

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Room:
        """A small furnished room's dimensions, wall colour and floor."""
        pattern = str(rng.choice(["planks", "tiles", "carpet"], p=[0.6, 0.2, 0.2]))
        tones = {"planks": palette.FLOORS, "tiles": palette.TILES, "carpet": palette.CARPETS}[pattern]
        return cls(
            width=rng.uniform(3.6, 4.5),
            depth=rng.uniform(3.7, 4.4),
            height=rng.uniform(2.5, 2.75),
            wall=palette.WALLS[rng.integers(len(palette.WALLS))] * rng.uniform(0.9, 1.0),
            floor=tones[rng.integers(len(tones))] * rng.uniform(0.9, 1.08),
            pattern=pattern,
        )

    def wall_length(self, wall: str) -> float:
        """Length of a wall in metres, measured along it from the corner nearest (0, 0)."""
        return self.width if wall == "back" else self.depth

    def on_wall(self, wall: str, along, z, out, albedo, glow: float = 0.0, flat: bool = False) -> Mesh:
        """A box on a wall, given by (low, high) pairs along it, in height and in distance from it.

        ``flat`` leaves only the face towards the room: the others of thin details would merely flicker.
        """
        faces = (FACING_ROOM[wall],) if flat else ALL_FACES
        if wall == "back":
            return box(along, (self.depth - out[1], self.depth - out[0]), z, albedo, glow=glow, faces=faces)
        x = out if wall == "left" else (self.width - out[1], self.width - out[0])
        return box(x, along, z, albedo, glow=glow, faces=faces)

    def wall_point(self, wall: str, along: float, z: float, out: float) -> np.ndarray:
        """Room coordinates of a point in front of a wall."""
        if wall == "back":
            return np.array([along, self.depth - out, z])
        return np.array([out if wall == "left" else self.width - out, along, z])

    def shell(self) -> Mesh:
        """Floor, ceiling and the three walls the camera can see, facing inwards, in that order."""
        w, d, h = self.width, self.depth, self.height
        corners = np.array([[x, y, z] for z in (0, h) for y in (0, d) for x in (0, w)], dtype=float)
        sides = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 2, 6, 4), (2, 3, 7, 6), (1, 5, 7, 3)]
        mesh = from_quads(corners[sides], self.wall)
        mesh.albedo[0], mesh.albedo[1] = self.floor, palette.CEILING
        return mesh


def free_stretch(room: Room, wall: str, length: float, clearance: float, tall, rng) -> tuple | None:
    """A random (low, high) stretch of a wall of ``length`` metres that no ``tall`` piece stands in front of.

    ``tall`` holds the (low, high) bounding corners of the pieces to keep clear of; None where nothing fits.
    """
    axis = 0 if wall == "back" else 1
    # Less than two metres from the camera's end of a side wall is hardly ever in the picture.
    start = 0.3 if wall == "back" else 1.9
    if room.wall_length(wall) - 0.3 - start < length:
        return None
    near = [
        (low[axis] - clearance, high[axis] + clearance)
        for low, high in tall
        if _distance_from_wall(room, wall, low, high) < 0.7
    ]
    for _ in range(8):
        low = rng.uniform(start, room.wall_length(wall) - 0.3 - length)
        if all(low + length < a or low > b for a, b in near):
            return low, low + length
    return None


def _distance_from_wall(room: Room, wall: str, low: np.ndarray, high: np.ndarray) -> float:
    """Gap in metres between a bounding box and a wall."""
    return {"left": low[0], "back": room.depth - high[1], "right": room.width - high[0]}[wall]


def _window(room: Room, wall: str, along) -> list[Mesh]:
    """A window with a view of sky and meadow, a white frame, a sill and light curtains."""
    low, high = along
    middle, z = (low + high) / 2, (1.05, 2.1)
    parts = [
        room.on_wall(wall, along, z, (0.0, 0.006), palette.SKY, glow=1.0),
        room.on_wall(wall, along, (z[0], z[0] + 0.38), (0.0, 0.012), palette.MEADOW, glow=0.9),
        room.on_wall(wall, (low - 0.1, high + 0.1), (z[0] - 0.1, z[0] - 0.05), (0.0, 0.14), palette.TRIM),
    ]
    for a, b in ((low - 0.05, low + 0.02), (middle - 0.025, middle + 0.025), (high - 0.02, high + 0.05)):
        parts.append(room.on_wall(wall, (a, b), (z[0] - 0.05, z[1] + 0.05), (0.0, 0.05), palette.TRIM))
    for a in (z[0] - 0.05, 1.66, z[1]):
        parts.append(room.on_wall(wall, along, (a, a + 0.05), (0.0, 0.04), palette.TRIM))
    for edge in (low - 0.3, high + 0.02):
        curtain = (0.92, 2.26), palette.LINEN * 0.95
        parts.append(room.on_wall(wall, (edge, edge + 0.28), curtain[0], (0.04, 0.09), curtain[1], flat=True))
        for fold in (0.03, 0.12, 0.21):
            at = edge + fold, edge + fold + 0.04
            parts.append(room.on_wall(wall, at, curtain[0], (0.09, 0.115), curtain[1], flat=True))
    rail = (low - 0.36, high + 0.36), (2.26, 2.29), (0.05, 0.09)
    parts.append(room.on_wall(wall, *rail, palette.METAL * 0.5))
    room.window = room.wall_point(wall, middle, 1.5, 0.3)
    return parts


def _door(room: Room, wall: str, along) -> list[Mesh]:
    """A white panelled door in its frame."""
    low, high = along
    parts = [
        room.on_wall(wall, (low - 0.08, high + 0.08), (0.0, 2.12), (0.0, 0.03), palette.TRIM * 0.95),
        room.on_wall(wall, along, (0.0, 2.04), (0.03, 0.045), palette.TRIM * 0.85),
        room.on_wall(wall, (low + 0.07, low + 0.1), (0.98, 1.02), (0.045, 0.1), palette.METAL * 0.6),
    ]
    for z in ((0.2, 0.9), (1.1, 1.85)):
        panel = (low + 0.16, high - 0.16), z, (0.045, 0.055)
        parts.append(room.on_wall(wall, *panel, palette.TRIM * 0.75))
    return parts


def _picture(room: Room, wall: str, along, rng: np.random.Generator) -> list[Mesh]:
    """A framed abstract in muted tones."""
    low, high = along
    bottom = rng.uniform(1.35, 1.5)
    top = bottom + min(0.6, (high - low) * rng.uniform(0.7, 1.1))
    mount = (low + 0.04, high - 0.04), (bottom + 0.04, top - 0.04)
    frame = palette.DARK_WOOD if rng.random() < 0.5 else palette.TRIM * 0.7
    parts = [
        room.on_wall(wall, along, (bottom, top), (0.0, 0.03), frame),
        room.on_wall(wall, *mount, (0.03, 0.034), palette.LINEN),
    ]
    for layer in range(3):
        a, b = np.sort(rng.uniform(low + 0.09, high - 0.09, 2))
        c, d = np.sort(rng.uniform(bottom + 0.09, top - 0.09, 2))
        spot = (a, b + 0.03), (c, d + 0.03), (0.034, 0.038 + 0.004 * layer)
        parts.append(room.on_wall(wall, *spot, palette.ART[rng.integers(len(palette.ART))]))
    return parts


def _rug(room: Room, rng: np.random.Generator) -> list[Mesh]:
    """A bordered rug on the floor, in muted tones."""
    half, deep = rng.uniform(0.8, 1.15), rng.uniform(0.55, 0.8)
    x, y = room.width / 2 + rng.uniform(-0.3, 0.3), room.depth * rng.uniform(0.5, 0.62)
    tone = palette.RUGS[rng.integers(len(palette.RUGS))]
    layers = ((0.0, 0.008, 0.75), (0.1, 0.012, 1.1), (0.16, 0.016, 0.9))
    parts = []
    for inset, z, bright in layers:
        across, along = (x - half + inset, x + half - inset), (y - deep + inset, y + deep - inset)
        parts.append(box(across, along, (0.0, z), np.minimum(tone * bright, 0.95), faces=("top",)))
    return parts


def furnish_walls(room: Room, obstacles, rng: np.random.Generator) -> Mesh:
    """Skirting, and by chance a cornice, a window, a door, a picture and a rug, clear of ``obstacles``.

    ``obstacles`` are the (low, high) bounding corners of the furniture; the room learns of its window.
    """
    parts = _rug(room, rng) if rng.random() < 0.5 else []
    cornice = rng.random() < 0.5
    for wall in WALL_SIDES:
        span = 0.0, room.wall_length(wall)
        parts.append(room.on_wall(wall, span, (0.0, 0.09), (0.0, 0.018), palette.TRIM * 0.9))
        if cornice:
            top = room.height - 0.08, room.height
            parts.append(room.on_wall(wall, span, top, (0.0, 0.05), palette.TRIM, flat=True))
    taken = []  # stretches already used, in the same form as the furniture's bounding corners
    for name, detail in DETAILS.items():
        wanted, length = rng.random() < detail.chance, rng.uniform(*detail.length)
        tall = [corners for corners in obstacles if corners[1][2] > detail.above] + taken
        walls = map(str, rng.choice(WALL_SIDES, size=3, replace=False, p=[0.2, 0.6, 0.2]))
        stretches = ((wall, free_stretch(room, wall, length, detail.clearance, tall, rng)) for wall in walls)
        wall, along = next((found for found in stretches if found[1]), (None, None))
        if not wanted or along is None:
            continue
        if name == "door":
            parts += _door(room, wall, along)
        elif name == "window":
            parts += _window(room, wall, along)
        else:
            parts += _picture(room, wall, along, rng)
        ends = [room.wall_point(wall, along[i] + (2 * i - 1) * detail.clearance, 0.0, 0.0) for i in (0, 1)]
        taken.append((np.minimum(*ends), np.maximum(*ends)))
    return join(parts)
