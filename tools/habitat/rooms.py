"""Sampling a scene: which pieces stand where in which room, seen by which camera; and its ground truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .backdrop import Room, furnish_walls
from .furniture import build
from .layout import BOUNDARY_MARGIN, SIDES, find_spot, near_boundary, side_of
from .meshes import Mesh, join
from .palette import NAMED_COLOURS
from .rendering import BACKGROUND, Camera, rasterise
from .shading import render

COLOURS = tuple(NAMED_COLOURS)
# Room type -> the kinds that make it recognisable, and the kinds that may be added.
ROOM_TYPES = {
    "bedroom": (("bed",), ("wardrobe", "cabinet", "lamp", "armchair", "planter", "chair", "television")),
    "living room": (
        ("sofa",),
        ("television", "armchair", "table", "lamp", "planter", "bookshelf", "cabinet"),
    ),
    "dining room": (("table", "chair"), ("cabinet", "planter", "lamp", "wardrobe", "television")),
    "study": (("bookshelf",), ("chair", "table", "armchair", "lamp", "cabinet", "planter", "wardrobe")),
}
ROOM_WEIGHTS = (0.26, 0.28, 0.22, 0.24)

MAX_MENTIONED = 3
MIN_SHARE = 0.02  # of the image, for a piece to be mentioned
MIN_SHARE_SLENDER = {"lamp": 0.009, "chair": 0.012}  # tall thin pieces are recognised with fewer pixels
MAX_SHARE = 0.3
MIN_UNOCCLUDED = 0.6  # visible share of the area a mentioned piece would cover if it stood alone
NEGLIGIBLE_SHARE = 0.002  # a piece may be left out of the captions if it is this invisible ...
LEFT_OUT_RATIO = 0.75  # ... or is the fourth, clearly smaller than the third
TRIAL_SIZE = 128  # pixels; the ground truth does not depend on the image's size


@dataclass(frozen=True)
class Piece:
    """One placed piece of furniture and what the ground truth says about it."""

    kind: str
    colour: str
    side: str
    visible_share: float  # of all pixels in the image
    centre_x: float  # visible centroid, 0 at the left and 1 at the right edge of the image
    mentioned: bool


@dataclass(frozen=True)
class Scene:
    """Everything needed to draw and to describe one view; ``pieces`` run from left to right.

    ``parts`` are the placed meshes of the furniture one by one, with their (kind, colour).
    """

    room_type: str
    room: Room
    backdrop: Mesh
    furniture: Mesh
    camera: Camera
    light: np.ndarray
    pieces: tuple[Piece, ...]
    parts: tuple[tuple[tuple[str, str], Mesh], ...]

    @property
    def mentioned(self) -> tuple[Piece, ...]:
        """The pieces captions speak of, from left to right."""
        return tuple(piece for piece in self.pieces if piece.mentioned)

    def image(self, size: int = 256) -> Image.Image:
        """The scene as a square image of ``size`` pixels."""
        return render(self.room, self.backdrop, self.furniture, self.camera, self.light, size)


def _sample_names(rng: np.random.Generator) -> tuple[str, list[tuple[str, str]]]:
    """A room type and the (kind, colour) of two to four pieces that suit it, all of different kinds."""
    room_type = str(rng.choice(list(ROOM_TYPES), p=ROOM_WEIGHTS))
    required, optional = ROOM_TYPES[room_type]
    count = int(rng.choice([2, 3, 4], p=[0.2, 0.62, 0.18]))
    extra = rng.permutation(list(optional))[: max(count - len(required), 0)]
    kinds = [*required, *map(str, extra)]
    colours = rng.choice(COLOURS, size=len(kinds), replace=bool(rng.random() < 0.25))
    return room_type, list(zip(kinds, map(str, colours), strict=True))


def _sample_camera(room: Room, rng: np.random.Generator) -> Camera:
    """A person's view from near one end of the room towards the other."""
    place = room.width / 2 + rng.uniform(-0.45, 0.45), rng.uniform(0.15, 0.45), rng.uniform(1.4, 1.6)
    yaw = (room.width / 2 - place[0]) / room.depth + np.radians(rng.uniform(-7, 7))
    return Camera(np.array(place), yaw, np.radians(rng.uniform(-21, -14)), np.radians(rng.uniform(68, 81)))


def _arrange(names, meshes: list[Mesh], room: Room, camera: Camera, rng) -> list[Mesh] | None:
    """The pieces at random spots, mostly one in each third of the image; None where one has no room."""
    sides = [*rng.permutation(SIDES), rng.choice(SIDES)]
    if rng.random() < 0.2:
        sides = rng.choice(SIDES, size=4)
    placed, taken = [], []
    for (kind, _), mesh, side in zip(names, meshes, sides, strict=False):
        found = find_spot(kind, mesh, side, room, camera, taken, rng)
        if found is None:
            return None
        spot, footprint = found
        placed.append(mesh.placed(*spot))
        taken.append(footprint)
    return placed


def describe(names, meshes: list[Mesh], camera: Camera) -> list[Piece] | None:
    """Ground truth of an arrangement from its face-number buffer; None where it cannot be told clearly."""
    buffers = np.stack([rasterise(mesh.quads, camera, TRIAL_SIZE)[0] for mesh in meshes])
    owner = np.where(buffers.any(axis=0), buffers.argmax(axis=0), BACKGROUND)
    alone = (buffers > 0).mean(axis=(1, 2))  # the share each piece would take without the others
    columns = [np.nonzero(owner == number)[1] for number in range(len(meshes))]
    shares = [len(column) / TRIAL_SIZE**2 for column in columns]
    centres = [(column.mean() + 0.5) / TRIAL_SIZE if len(column) else 0.5 for column in columns]
    ranked = sorted(range(len(meshes)), key=lambda number: -shares[number])
    large = [i for i in ranked if shares[i] >= MIN_SHARE_SLENDER.get(names[i][0], MIN_SHARE)]
    chosen = large[:MAX_MENTIONED]
    if len(chosen) < 2 or shares[ranked[0]] > MAX_SHARE:
        return None
    for number in set(ranked) - set(chosen):
        fourth = len(chosen) == MAX_MENTIONED and shares[number] < LEFT_OUT_RATIO * shares[chosen[-1]]
        if shares[number] > NEGLIGIBLE_SHARE and not fourth:
            return None
    places = sorted(centres[number] for number in chosen)
    # The order from left to right must not be a matter of opinion either.
    if any(map(near_boundary, places)) or min(np.diff(places)) < BOUNDARY_MARGIN:
        return None
    if any(shares[i] < MIN_UNOCCLUDED * alone[i] for i in chosen):
        return None
    return [
        Piece(*names[i], side_of(centres[i]), shares[i], float(centres[i]), i in chosen)
        for i in sorted(ranked, key=lambda number: centres[number])
    ]


def sample_scene(seed: int) -> Scene:
    """The scene that belongs to an integer seed; arrangements that cannot be told clearly are redrawn."""
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    room_type, names = _sample_names(rng)
    models = [build(kind, colour, rng) for kind, colour in names]
    pieces = None
    while not pieces:
        room = Room.sample(rng)
        camera = _sample_camera(room, rng)
        meshes = _arrange(names, models, room, camera, rng)
        pieces = describe(names, meshes, camera) if meshes else None
    for (kind, _), mesh in zip(names, meshes, strict=True):
        if kind == "lamp":
            low, high = mesh.bounds
            room.lamps.append(np.array([*(low + high)[:2] / 2, high[2] - 0.2]))
    details = furnish_walls(room, [mesh.bounds for mesh in meshes], rng)
    across, along = room.width * rng.uniform(0.3, 0.7), room.depth * rng.uniform(0.3, 0.55)
    light = np.array([across, along, room.height - 0.25])
    backdrop = join([room.shell(), details])
    parts = tuple(zip(names, meshes, strict=True))
    return Scene(room_type, room, backdrop, join(meshes), camera, light, tuple(pieces), parts)
