"""An agent in a rendered room: what it sees, where it can go, and the teacher that walks to a goal."""

import numpy as np
import pytest
from habitat.episodes import teach_goal
from habitat.navigation import (
    ACTIONS,
    FIELD_OF_VIEW,
    MAX_STEPS,
    RADIUS,
    REACH,
    STEP,
    TRIAL_SIZE,
    TURN,
    Frame,
    Pose,
    World,
    teach_episode,
)
from habitat.rendering import BACKGROUND, rasterise

ROOMS = 4


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    return [World(50_000_000 + number) for number in range(ROOMS)]


def poses(world: World, count: int) -> list[Pose]:
    rng = np.random.default_rng(1)
    return [world.random_pose(rng) for _ in range(count)]


def test_whichever_way_it_looks_it_sees_walls_all_around(worlds):
    for world in worlds:
        for pose in poses(world, 10):
            faces = rasterise(world.backdrop.quads, world.camera(pose), TRIAL_SIZE)[1]
            assert (faces != BACKGROUND).all()
            assert np.asarray(world.image(pose, 48)).std() > 1


def test_what_is_in_view_lies_where_its_bearing_says(worlds):
    """Against angles: of a piece that furniture half hides, the part in view may lie a little further off."""
    right = []
    for world in worlds:
        for pose in poses(world, 30):
            for goal, sight in enumerate(world.sights(pose)):
                bearing = pose.bearing(*world.middle(goal))
                if sight is None or sight.distance < 0.8:
                    continue
                place = np.tan(bearing) / np.tan(FIELD_OF_VIEW / 2)  # -1 at the left edge of the image, 1 at the right
                low, high = {"left": (-2, -1 / 3), "middle": (-1 / 3, 1 / 3), "right": (1 / 3, 2)}[sight.side]
                right.append(abs(bearing) < np.pi / 2 and low - 0.2 < place < high + 0.2)
                assert sight.distance == float(world.distance(goal, pose.x, pose.y))
    assert len(right) > 50 and np.mean(right) > 0.95


def test_a_step_moves_and_a_wall_stops_it(worlds):
    world = worlds[0]
    room = world.scene.room
    assert Pose(1.0, 1.0, 0.0).ahead == Pose(1.0, 1.0 + STEP, 0.0)
    assert Pose(1.0, 1.0, np.pi / 2).ahead.x == pytest.approx(1.0 + STEP)
    assert Pose(1, 1, 0).turned(TURN).bearing(1, 2) == pytest.approx(-TURN)
    for pose in poses(world, 200):
        after = world.act(pose, "move forward")
        assert RADIUS <= after.x <= room.width - RADIUS + 0.1 and RADIUS <= after.y <= room.depth - RADIUS + 0.1
        assert all(world.distance(goal, after.x, after.y) > 0 for goal in range(len(world.goals)))
        turned = world.act(pose, "turn left")
        assert (turned.x, turned.y) == (pose.x, pose.y) and turned.heading != pose.heading
        assert world.act(pose, "stop") == world.act(pose, "dance") == pose


def test_ways_are_as_long_as_a_slow_search_says(worlds):
    """Bellman's sweeps over all cells until nothing changes."""
    world = worlds[1]
    metres = world.way(0)
    ends = metres == 0
    slow = np.where(ends, 0.0, np.inf)
    while True:
        best = slow.copy()
        for across in (-1, 0, 1):
            for along in (-1, 0, 1):
                moved = np.full_like(slow, np.inf)
                columns, rows = slow.shape
                to = (slice(max(across, 0), columns + min(across, 0)), slice(max(along, 0), rows + min(along, 0)))
                off = (slice(max(-across, 0), columns + min(-across, 0)), slice(max(-along, 0), rows + min(-along, 0)))
                moved[to] = slow[off] + 0.1 * np.hypot(across, along)
                best = np.minimum(best, np.where(world.free, moved, np.inf))
        if np.array_equal(best, slow):
            break
        slow = best
    assert ends.any() and np.allclose(slow, metres)


def test_the_teacher_arrives_and_stops_within_reach(worlds):
    arrived = tried = 0
    for world in worlds:
        rng = np.random.default_rng(2)
        for goal in range(len(world.goals)):
            start = world.random_pose(rng)
            frames = teach_episode(world, goal, start, rng, slips=0.0)
            tried += 1
            if frames is None:
                continue
            arrived += 1
            end = frames[-1]
            assert world.teach(end.pose, goal, end.sights[goal]) == "stop" and len(frames) <= MAX_STEPS
            assert world.distance(goal, end.pose.x, end.pose.y) <= REACH and world.has_arrived(end.pose, goal)
            taught = [world.teach(frame.pose, goal, frame.sights[goal]) for frame in frames]
            assert set(taught) <= set(ACTIONS) and taught.count("stop") == 1
            walked = STEP * taught.count("move forward")
            assert walked <= 1.5 * world.way(goal)[world.cell(start)] + 1
    assert arrived >= 0.8 * tried


def test_a_goal_out_of_reach_is_not_taught(worlds, monkeypatch):
    world = World(50_000_000)
    monkeypatch.setattr(world, "way", lambda goal: np.full(world.free.shape, np.inf))
    for pose in poses(world, 20):
        sights = world.sights(pose)
        assert teach_goal(world, 0, Frame(pose, tuple(sights))) is None
        assert world.teach(pose, 0, sights[0]) in ACTIONS  # and asking for it ends


def test_what_the_teacher_does_is_mostly_seen_in_the_image(worlds):
    """Out of view: look about. Left or right: turn there. In the middle: go on, or stop where it is near."""
    expected = {"left": "turn left", "right": "turn right"}
    agreed = []
    for world in worlds:
        for pose in poses(world, 25):
            for goal, sight in enumerate(world.sights(pose)):
                action = world.teach(pose, goal, sight)
                if sight is None:
                    assert action == "turn right"
                elif sight.side == "middle":
                    agreed.append(action == ("stop" if sight.distance <= REACH else "move forward"))
                else:
                    agreed.append(action in (expected[sight.side], "stop"))
    assert len(agreed) > 50 and np.mean(agreed) > 0.8
