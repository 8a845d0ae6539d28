"""Let a model walk: rendered rooms that no training has seen, in which it is to reach a piece of furniture and stop.

    python tools/drive_habitat.py log/habitat/nav_lora --rooms 20
    python tools/drive_habitat.py teacher            # what the data set's teacher reaches, and: random

At each step the model sees one image and is asked what it was trained to answer (tools/habitat/episodes.py); the field
"action" of its answer is done. An episode is a success if it says "stop" within 0.8 m of the goal and with the goal
ahead, in at most 40 steps. A random walk need not say it: being there once counts. All rooms go through the model
together. Prints a table; --json FILE keeps each episode.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from habitat.episodes import SEED_OFFSETS, SEEDS_PER_RUN, draw_start, prompt
from habitat.navigation import ACTIONS, MAX_STEPS, STEP, Pose, World
from rich.console import Console
from rich.table import Table

from internvl.cli import Parser
from internvl.errors import UserError, ends_on_user_error
from internvl.evaluation.bootstrap import percentile_interval
from internvl.evaluation.matching import Match
from internvl.inference.engine import Engine
from internvl.inference.requests import Request
from internvl.logging_utils import setup_logging
from internvl.progress import Progress

IMAGE_SIZE = 192
MAX_NEW_TOKENS = 128
RESAMPLES = 1000


@dataclass
class Drive:
    """An episode as it is driven: where the agent is, what it did, and how it ended."""

    world: World
    goal: int
    pose: Pose
    shortest: float  # metres of the shortest way
    actions: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    walked: float = 0.0
    is_over: bool = False
    succeeded: bool = False

    def do(self, action: str) -> None:
        """Do an action; one that is none leaves the agent where it is."""
        self.actions.append(action)
        before, self.pose = self.pose, self.world.act(self.pose, action)
        self.walked += STEP * (before.x != self.pose.x or before.y != self.pose.y)
        if action == "stop":
            self.is_over, self.succeeded = True, self.world.has_arrived(self.pose, self.goal)
        self.is_over = self.is_over or len(self.actions) >= MAX_STEPS

    @property
    def efficiency(self) -> float:
        """Success weighted by path length (Anderson et al. 2018, arXiv:1807.06757)."""
        longest = max(self.walked, self.shortest)
        return float(self.succeeded) * (self.shortest / longest if longest else 1.0)


Policy = Callable[[Sequence[Drive]], list[str]]


def make_drives(rooms: int, seed: int) -> list[Drive]:
    """Return an episode in each of ``rooms`` rooms, whose goal the teacher can reach."""
    drives = []
    for number in range(rooms):
        room = seed * SEEDS_PER_RUN + SEED_OFFSETS["drive"] + number
        world, rng = World(room), np.random.default_rng(room)
        while True:
            goal = int(rng.integers(len(world.goals)))
            start = draw_start(world, goal, rng)
            shortest = float(world.way(goal)[world.cell(start)])
            drive = Drive(world, goal, start, shortest)
            if np.isfinite(shortest) and shortest > 2 * STEP and drive_all([drive], teacher)[0].succeeded:
                drives.append(Drive(world, goal, start, shortest))
                break
    return drives


def drive_all(drives: list[Drive], policy: Policy) -> list[Drive]:
    """Drive all episodes to their ends, a step of each at a time."""
    while going := [drive for drive in drives if not drive.is_over]:
        for drive, action in zip(going, policy(going), strict=True):
            drive.do(action)
    return drives


def teacher(drives: Sequence[Drive]) -> list[str]:
    """Do what the data set teaches."""
    return [drive.world.teach(drive.pose, drive.goal, drive.world.sights(drive.pose)[drive.goal]) for drive in drives]


def random_walk(rng: np.random.Generator) -> Policy:
    """Return a policy that moves at random and is stopped as soon as it has arrived."""
    return lambda drives: [
        "stop" if drive.world.has_arrived(drive.pose, drive.goal) else ACTIONS[rng.integers(3)] for drive in drives
    ]


def model_policy(engine: Engine) -> Policy:
    """Return the policy of a model; what it says beside an action is counted as a fault of the episode."""
    match = Match.parse("json:action")

    def choose(drives: Sequence[Drive]) -> list[str]:
        requests = [
            Request(
                [engine.read(drive.world.image(drive.pose, IMAGE_SIZE), 1)],
                f"<image>\n{prompt(drive.world.goals[drive.goal])}",
            )
            for drive in drives
        ]
        chosen = []
        for drive, answer in zip(drives, engine.answer(requests, max_new_tokens=MAX_NEW_TOKENS), strict=True):
            value = match.value(answer)
            if value.text not in ACTIONS:
                drive.faults[value.fault or f"no such action: {value.text}"] += 1
            chosen.append(value.text or "")
        return chosen

    return choose


def summarize(drives: list[Drive]) -> dict:
    """Return the rate of successes with its 95 % bootstrap interval over rooms, and what episodes were like."""
    succeeded = np.array([drive.succeeded for drive in drives], float)
    rng = np.random.default_rng(0)
    drawn = rng.choice(succeeded, (RESAMPLES, len(succeeded))).mean(axis=1)
    return {
        "episodes": len(drives),
        "success": float(succeeded.mean()),
        "success_interval": percentile_interval(drawn),
        "spl": float(np.mean([drive.efficiency for drive in drives])),
        "steps": float(np.mean([len(drive.actions) for drive in drives])),
        "faults": sum(drive.faults.total() for drive in drives),
    }


def show(results: dict[str, dict]) -> None:
    """Print a table of what was driven."""
    table = Table(title=f"{next(iter(results.values()))['episodes']} unseen rooms, one goal each")
    for column in ("driver", "reached", "95 % interval", "SPL", "steps", "no action"):
        table.add_column(column, justify="left" if column == "driver" else "right")
    for name, figures in results.items():
        low, high = figures["success_interval"]
        interval = f"{low:.0%} – {high:.0%}"
        row = (f"{figures['success']:.0%}", interval, f"{figures['spl']:.2f}", f"{figures['steps']:.1f}")
        table.add_row(name, *row, str(figures["faults"]))
    Console().print(table)


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drivers", nargs="+", metavar="MODEL", help="base, merged model or adapter; teacher; random")
    parser.add_argument("--rooms", type=int, default=20, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="other seeds are other rooms")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every episode")
    return parser


@ends_on_user_error
def main(argv: list[str] | None = None) -> int:
    """Drive, print a table and write the episodes."""
    args = make_parser().parse_args(argv)
    setup_logging()
    if args.rooms < 1:
        raise UserError(f"--rooms: is {args.rooms}. Give 1 or more.")
    policies: dict[str, Policy] = {}
    for driver in args.drivers:
        if driver == "teacher":
            policies[driver] = teacher
        elif driver == "random":
            policies[driver] = random_walk(np.random.default_rng(args.seed))
        else:
            policies[driver] = model_policy(Engine.load(driver, precision=args.precision))
    results, episodes = {}, {}
    with Progress(total=len(policies) * args.rooms, desc="Driving", unit=" rooms", leave=False) as progress:
        for name, policy in policies.items():
            drives = drive_all(make_drives(args.rooms, args.seed), policy)
            results[name] = summarize(drives)
            episodes[name] = [
                {
                    "goal": drive.world.goals[drive.goal],
                    "succeeded": drive.succeeded,
                    "shortest": drive.shortest,
                    "walked": drive.walked,
                    "actions": drive.actions,
                    "faults": drive.faults,
                    "end": asdict(drive.pose),
                }
                for drive in drives
            ]
            progress.update(args.rooms)
    show(results)
    if args.json:
        args.json.write_text(json.dumps({"summary": results, "episodes": episodes}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
