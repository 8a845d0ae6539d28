"""An agent in a furnished room: what it sees, where it can go, and a teacher that walks to a piece of furniture.

Lengths are metres and angles radians, in the room's frame; a heading is 0 along +y and grows to the right.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
from PIL import Image

from .layout import side_of
from .meshes import from_quads, join
from .rendering import Camera, rasterise
from .rooms import Scene, sample_scene
from .shading import render

ACTIONS = ("move forward", "turn left", "turn right", "stop")
STEP = 0.25  # metres of "move forward", as in Habitat's tasks
TURN = np.radians(20)
RADIUS = 0.25  # metres between the agent's middle and whatever it may not touch
REACH = 1.0  # metres to the goal's bounding box within which "stop" is right
FACING = np.radians(35)  # and how far the goal may be off the middle of the view
MAX_STEPS = 40
CELL = 0.1  # metres of a cell of the map
OFF_COURSE = np.radians(15)  # beyond, the teacher turns: what it walks to leaves the middle third of the view
SEEN_SHARE = 0.003  # of the image, for a piece to count as in view
TRIAL_SIZE = 64  # px of the image that is asked what is in view
# Lower than the cameras of the captions look, so that a piece within reach is in view.
EYE_HEIGHT, PITCH, FIELD_OF_VIEW = 1.5, np.radians(-26), np.radians(78)


@dataclass(frozen=True)
class Pose:
    """Where the agent stands and where it looks."""

    x: float
    y: float
    heading: float

    @property
    def ahead(self) -> Pose:
        """The pose a step further on."""
        return replace(self, x=self.x + STEP * np.sin(self.heading), y=self.y + STEP * np.cos(self.heading))

    def turned(self, angle: float) -> Pose:
        """The pose turned to the right by an angle."""
        return replace(self, heading=_wrapped(self.heading + angle))

    def bearing(self, x: float, y: float) -> float:
        """Return the angle to the right of the heading at which a point lies, from -π to π."""
        return _wrapped(np.arctan2(x - self.x, y - self.y) - self.heading)


def _wrapped(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


@dataclass(frozen=True)
class Sight:
    """A piece of furniture in view: where its middle is (0 left edge, 1 right), in which third, and metres to it."""

    centre: float
    side: str
    distance: float


class World:
    """A room that an agent moves about in; ``goals`` are its pieces as "colour kind"."""

    def __init__(self, seed: int):
        self.scene: Scene = sample_scene(seed)
        self.goals = tuple(f"{colour} {kind}" for (kind, colour), _ in self.scene.parts)
        room = self.scene.room
        # The wall behind the camera of the captions, which never see it.
        front = np.array([[[0, 0, 0], [0, 0, room.height], [room.width, 0, room.height], [room.width, 0, 0]]], float)
        self.backdrop = join([self.scene.backdrop, from_quads(front, room.wall)])

    @cached_property
    def free(self) -> np.ndarray:
        """Which cells of the map the agent's middle may be in, bool (columns, rows)."""
        room = self.scene.room
        x, y = self._centres
        free = (x > RADIUS) & (x < room.width - RADIUS) & (y > RADIUS) & (y < room.depth - RADIUS)
        for number in range(len(self.goals)):
            free &= self.distance(number, x, y) > RADIUS
        return free

    @cached_property
    def _centres(self) -> tuple[np.ndarray, np.ndarray]:
        room = self.scene.room
        columns, rows = int(room.width / CELL) + 1, int(room.depth / CELL) + 1
        return np.meshgrid((np.arange(columns) + 0.5) * CELL, (np.arange(rows) + 0.5) * CELL, indexing="ij")

    def distance(self, goal: int, x, y):
        """Return the metres from points to the bounding box of a piece on the floor."""
        low, high = self.scene.parts[goal][1].bounds
        return np.hypot(
            np.maximum(np.maximum(low[0] - x, x - high[0]), 0), np.maximum(np.maximum(low[1] - y, y - high[1]), 0)
        )

    def middle(self, goal: int) -> tuple[float, float]:
        """Return where a piece stands."""
        low, high = self.scene.parts[goal][1].bounds
        return float((low[0] + high[0]) / 2), float((low[1] + high[1]) / 2)

    def cell(self, pose: Pose) -> tuple[int, int]:
        """Return the cell of the map that a pose is in."""
        return int(pose.x / CELL), int(pose.y / CELL)

    def is_free(self, pose: Pose) -> bool:
        """Whether the agent may stand there."""
        column, row = self.cell(pose)
        inside = 0 <= column < self.free.shape[0] and 0 <= row < self.free.shape[1]
        return inside and bool(self.free[column, row])

    def random_pose(self, rng: np.random.Generator) -> Pose:
        """Return a free place and a heading, both drawn."""
        places = np.argwhere(self.free)
        column, row = places[rng.integers(len(places))]
        return Pose((column + 0.5) * CELL, (row + 0.5) * CELL, float(rng.uniform(-np.pi, np.pi)))

    def act(self, pose: Pose, action: str) -> Pose:
        """Return the pose after an action; a step into furniture or a wall leaves the agent where it is."""
        if action == "turn left":
            return pose.turned(-TURN)
        if action == "turn right":
            return pose.turned(TURN)
        if action == "move forward" and self.is_free(pose.ahead):
            return pose.ahead
        return pose

    def has_arrived(self, pose: Pose, goal: int) -> bool:
        """Whether "stop" is right: the goal is within reach and ahead."""
        return self._is_near(pose.x, pose.y, goal) and abs(pose.bearing(*self.middle(goal))) <= FACING

    def camera(self, pose: Pose) -> Camera:
        """Return what the agent looks through."""
        return Camera(np.array([pose.x, pose.y, EYE_HEIGHT]), pose.heading, PITCH, FIELD_OF_VIEW)

    def image(self, pose: Pose, size: int) -> Image.Image:
        """Return what the agent sees, as a square image of ``size`` px."""
        return render(self.scene.room, self.backdrop, self.scene.furniture, self.camera(pose), self.scene.light, size)

    def sights(self, pose: Pose) -> list[Sight | None]:
        """Return what the agent sees of each goal; None where one is not in view."""
        meshes = [mesh for _, mesh in self.scene.parts]
        buffers = np.stack([rasterise(mesh.quads, self.camera(pose), TRIAL_SIZE)[0] for mesh in meshes])
        owner = np.where(buffers.any(axis=0), buffers.argmax(axis=0), -1)
        sights: list[Sight | None] = []
        for number in range(len(meshes)):
            columns = np.nonzero(owner == number)[1]
            seen = len(columns) >= SEEN_SHARE * TRIAL_SIZE**2
            centre = float((columns.mean() + 0.5) / TRIAL_SIZE) if seen else 0.0
            distance = float(self.distance(number, pose.x, pose.y))
            sights.append(Sight(centre, side_of(centre), distance) if seen else None)
        return sights

    @cache  # noqa: B019 - a world lives as long as its episodes
    def way(self, goal: int) -> np.ndarray:
        """Return the metres to walk from each cell to within reach of a goal, inf where there is no way."""
        x, y = self._centres
        metres = np.full(self.free.shape, np.inf)
        ends = np.argwhere(self.free & (self.distance(goal, x, y) <= REACH - CELL))
        queue = [(0.0, int(column), int(row)) for column, row in ends]
        while queue:
            walked, column, row = heapq.heappop(queue)
            if metres[column, row] <= walked:
                continue
            metres[column, row] = walked
            for next_column, next_row, length in self._neighbours(column, row):
                if walked + length < metres[next_column, next_row]:
                    heapq.heappush(queue, (walked + length, next_column, next_row))
        return metres

    def _neighbours(self, column: int, row: int):
        for across in (-1, 0, 1):
            for along in (-1, 0, 1):
                near = column + across, row + along
                inside = 0 <= near[0] < self.free.shape[0] and 0 <= near[1] < self.free.shape[1]
                if (across or along) and inside and self.free[near]:
                    yield *near, CELL * np.hypot(across, along)

    def teach(self, pose: Pose, goal: int, sight: Sight | None) -> str:
        """Return what to do: look about to the right while the goal is not in view, then walk the shortest way."""
        if sight is None:
            return "turn right"
        if self.has_arrived(pose, goal):
            return "stop"
        target = self.middle(goal)
        if not self._is_near(pose.x, pose.y, goal) and not self._sees_a_way(pose, target, goal):
            target = self._corner_of_the_way(pose, goal)
        bearing = pose.bearing(*target)
        if abs(bearing) > OFF_COURSE:
            return "turn left" if bearing < 0 else "turn right"
        return "move forward"

    def _is_near(self, x: float, y: float, goal: int) -> bool:
        return bool(self.distance(goal, x, y) <= REACH)

    def _sees_a_way(self, pose: Pose, target: tuple[float, float], goal: int) -> bool:
        """Whether the straight line to a point is free, as far as the goal comes within reach on it."""
        length = np.hypot(target[0] - pose.x, target[1] - pose.y)
        for share in np.arange(0, 1, CELL / 2 / max(length, CELL)):
            x, y = pose.x + share * (target[0] - pose.x), pose.y + share * (target[1] - pose.y)
            if self._is_near(x, y, goal):
                return True
            if not self.is_free(replace(pose, x=x, y=y)):
                return False
        return True

    def _corner_of_the_way(self, pose: Pose, goal: int) -> tuple[float, float]:
        """Return the last point of the shortest way that a straight line leads to: where the way bends."""
        metres = self.way(goal)
        column, row = self.cell(pose)
        corner = (pose.x, pose.y)
        while 0 < metres[column, row] < np.inf:
            near = [(c, r) for c, r, _ in self._neighbours(column, row)]
            column, row = min(near, key=lambda cell: metres[cell])
            point = ((column + 0.5) * CELL, (row + 0.5) * CELL)
            if not self._sees_a_way(pose, point, goal):
                break
            corner = point
        return corner


@dataclass(frozen=True)
class Frame:
    """A moment of an episode: the pose, and what the agent sees of each goal there."""

    pose: Pose
    sights: tuple[Sight | None, ...]


def teach_episode(world: World, goal: int, start: Pose, rng: np.random.Generator, slips: float) -> list[Frame] | None:
    """Return the frames of a walk to a goal; None where the teacher does not get there.

    With a probability of ``slips`` the agent does something else than it was taught, so that the data has mistakes
    that are put right.
    """
    frames, pose = [], start
    for _ in range(MAX_STEPS):
        sights = world.sights(pose)
        frames.append(Frame(pose, tuple(sights)))
        action = world.teach(pose, goal, sights[goal])
        if action == "stop":
            return frames
        if rng.random() < slips:
            action = ACTIONS[rng.integers(3)]
        pose = world.act(pose, action)
    return None
