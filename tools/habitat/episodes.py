"""Writing episodes: an agent's frames on the way to a piece of furniture, and what the teacher does at each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from .dataset import map_in_processes
from .navigation import ACTIONS, REACH, Frame, Pose, World, teach_episode

# Of rooms, apart from each other and from those of captions; in those of "drive" nothing is trained or scored.
SEED_OFFSETS = {"train": 50_000_000, "val": 60_000_000, "drive": 70_000_000}
SEEDS_PER_RUN = 100_000_000
EPISODE_STREAM = 2  # keeps starts and slips apart from the room
SLIPS = 0.15  # of the training's steps; episodes to be scored on have none
START_IN_VIEW = 0.7
JPEG_QUALITY = 75
MIN_FRAMES = 4
UNSEEN_EVERY = 4  # of the other goals that are out of view, which all have the same answer, each fourth is asked about


@dataclass(frozen=True)
class Episode:
    """A walk to ``goal`` in a room, with the file of each frame."""

    number: int
    room: int
    goals: tuple[str, ...]
    goal: int
    frames: list[Frame]
    answers: list[list[str | None]]  # what the teacher does at each frame, by goal; None for one that is out of reach
    files: list[str]


def prompt(goal: str) -> str:
    """Return what the agent is asked at each step."""
    return f"Walk to the {goal}. Answer as JSON, with an action: {', '.join(ACTIONS[:-1])} or {ACTIONS[-1]}."


def answer(world: World, goal: int, frame: Frame) -> str:
    """Return the answer at a frame: what is in view from left to right, where the goal is, and what is done."""
    seen = [
        (sight.centre, sight.side, *world.scene.parts[number][0]) for number, sight in enumerate(frame.sights) if sight
    ]
    listing = "; ".join(f"{side}: {kind}, {colour}" for _, side, kind, colour in sorted(seen))
    sight = frame.sights[goal]
    where = f"{sight.side}, {'near' if sight.distance <= REACH else 'far'}" if sight else "not in view"
    return json.dumps(
        {
            "observation": listing or "nothing",
            "thought": f"{world.goals[goal]}: {where}",
            "action": world.teach(frame.pose, goal, sight),
        }
    )


def draw_start(world: World, goal: int, rng: np.random.Generator) -> Pose:
    """Return where an episode starts: for most of them, the goal is in view."""
    wants_view = rng.random() < START_IN_VIEW
    for _ in range(50):
        pose = world.random_pose(rng)
        if not wants_view or world.sights(pose)[goal] is not None:
            break
    return pose


def make_episode(world: World, rng: np.random.Generator, slips: float) -> tuple[int, list[Frame]]:
    """Return a goal and the frames of a walk to it, drawn until the teacher gets there."""
    while True:
        goal = int(rng.integers(len(world.goals)))
        frames = teach_episode(world, goal, draw_start(world, goal, rng), rng, slips)
        if frames is not None and len(frames) >= MIN_FRAMES:
            return goal, frames


def teach_goal(world: World, goal: int, frame: Frame) -> str | None:
    """Return the answer about a goal at a frame; None where no way leads there."""
    if not np.isfinite(world.way(goal)[world.cell(frame.pose)]):
        return None
    return answer(world, goal, frame)


def render_episode(number: int, out: Path, split: str, seed: int, size: int) -> Episode:
    """Render the episode of a room, which is the only one there, into the data set's folder."""
    room = seed * SEEDS_PER_RUN + SEED_OFFSETS[split] + number
    world = World(room)
    rng = np.random.default_rng(np.random.SeedSequence([room, EPISODE_STREAM]))
    chosen, frames = make_episode(world, rng, SLIPS if split == "train" else 0.0)
    folder = Path("images") / split / f"{number:04d}"
    (out / folder).mkdir(parents=True, exist_ok=True)
    files = [str(folder / f"{step:02d}.jpg") for step in range(len(frames))]
    answers = []
    for frame, file in zip(frames, files, strict=True):
        world.image(frame.pose, size).save(out / file, quality=JPEG_QUALITY, optimize=True)
        answers.append([teach_goal(world, goal, frame) for goal in range(len(world.goals))])
    return Episode(number, room, world.goals, chosen, frames, answers, files)


def rows_of(episode: Episode, split: str):
    """Yield the rows of an episode: in training each frame with questions about other goals of the room, too."""
    for step, (file, answers) in enumerate(zip(episode.files, episode.answers, strict=True)):
        for goal, text in enumerate(answers):
            in_view = episode.frames[step].sights[goal] is not None
            is_other = split == "train" and (in_view or (step + goal) % UNSEEN_EVERY == 0)
            if text is None or not (goal == episode.goal or is_other):
                continue
            question = {"from": "human", "value": f"<image>\n{prompt(episode.goals[goal])}"}
            yield {
                "image": file,
                "scene_id": f"room-{episode.room}",
                "episode_id": f"{split}-{episode.number:04d}",
                "step": step,
                "conversations": [question, {"from": "gpt", "value": text}],
            }


def write_episodes(out: Path, num_train: int, num_val: int, seed: int = 0, size: int = 160, workers: int = 1) -> None:
    """Write a data set of episodes; the same arguments give the same bytes whatever the number of ``workers``."""
    for split, count in (("train", num_train), ("val", num_val)):
        work = partial(render_episode, out=out, split=split, seed=seed, size=size)
        shown = {"desc": f"{split} episodes", "unit": "episode"}
        episodes = map_in_processes(work, range(count), workers, chunksize=2, **shown)
        rows = [row for episode in episodes for row in rows_of(episode, split)]
        lines = (json.dumps({"id": number, **row}, ensure_ascii=False) + "\n" for number, row in enumerate(rows))
        (out / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
