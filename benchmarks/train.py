"""Time training steps of this project against its own plain path and against transformers' model with PEFT.

    python benchmarks/train.py --rounds 3 --json train.json --plot train.png
    python benchmarks/train.py --scenario tiles --ways ours plain --json train.json
    python benchmarks/train.py --llm qwen3 --json qwen3.json
    python benchmarks/train.py --size full --steps 3 --json full.json        # the shape of InternVL2-2B, for a GPU

All ways train the same rows from the same random weights, each in a process of its own, in turn, ``--rounds`` times;
the figures are medians. Loss and gradients of the first step must be the same in all of them. Tokens are those of
plain rows, so a way that reads fewer is not counted less. ``train_ways.py`` says what the ways are.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from random_checkpoint import FULL, LLMS, PUBLISHED, SIZES, size_config, write_pair
from rich.progress import track
from train_report import draw, print_scenario
from train_scenarios import Point, Scenario, scenarios
from train_ways import WAYS, Task, measure

from internvl.device import detect_device
from internvl.errors import UserError, ends_on_user_error
from internvl.json_files import write_json

MEASURE = "--only-measure"
# The published rank is a sixteenth of the width.
RANKS = {"tiny": 4, "mid": 64, "even": 24, FULL: 128}
# Relative differences of loss and gradient norm between ways: sums in another order, and features that the cache
# rounds to bfloat16.
TOLERANCES = {"fp32": {"loss": 1e-3, "grad_norm": 1e-3}, "bf16": {"loss": 1e-2, "grad_norm": 1e-1}}
LINES_OF_ERROR = 15


def run(task: Task) -> dict:
    """Measure a task in a process of its own.

    Raises:
        UserError: it failed; its last lines are in the message.
    """
    done = subprocess.run([sys.executable, __file__, MEASURE, task.to_json()], capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-LINES_OF_ERROR:])
        raise UserError(f"{task.way}: ended with status {done.returncode}. Its last lines:\n{tail}")
    return json.loads(done.stdout.splitlines()[-1])


def summarize(way: str, point: Point, runs: list[dict]) -> dict:
    """Return the figures of a way from those of its rounds: medians of all its steps."""
    seconds = [second for figures in runs for second in figures["seconds"]]
    median = statistics.median(seconds)
    return {
        "label": WAYS[way].label,
        "rows_per_second": point.rows.num_rows / median,
        "tokens_per_second": runs[0]["tokens"] / median,
        "seconds": seconds,
        **{name: statistics.median(figures[name] for figures in runs) for name in ("peak_mib", "above_start_mib")},
        **{name: runs[0][name] for name in ("loss", "grad_norm")},
    }


def compare(point: Point, ways: dict[str, dict], tolerance: dict[str, float]) -> dict:
    """Return a point's figures with the first way's ratios to the others.

    Raises:
        UserError: ways differ in loss or gradients, so that they did not do the same work.
    """
    first, *others = ways
    best = ways[first]
    differences = {}
    for name, most in tolerance.items():
        values = {key: way[name] for key, way in ways.items()}
        differences[name] = (max(values.values()) - min(values.values())) / min(values.values())
        if not differences[name] <= most:  # nor is it where one is not a number
            raise UserError(
                f"{point.value}: {name} of the first step differs by {differences[name]:.1e}: {values}. These ways do "
                "not train the same. Please report this."
            )
    return {
        "value": point.value,
        "rows": point.rows.num_rows,
        "per_device_batch_size": point.per_device,
        "ways": ways,
        "ratios": {
            key: {
                "speed": best["rows_per_second"] / ways[key]["rows_per_second"],
                "memory": best["peak_mib"] / ways[key]["peak_mib"],
            }
            for key in others
        },
        "relative_differences": differences,
    }


def measure_point(point: Point, ways: list[str], rounds: int, settings: dict, dtype: str) -> dict:
    """Measure all ways at one point, in turn."""
    runs: dict[str, list[dict]] = {way: [] for way in ways}
    turns = [way for _ in range(rounds) for way in ways]
    for way in track(turns, description=f"{point.value}", transient=True):
        runs[way].append(run(Task(way=way, rows=point.rows, per_device=point.per_device, **settings)))
    return compare(point, {way: summarize(way, point, runs[way]) for way in ways}, TOLERANCES[dtype])


def measure_scenario(scenario: Scenario, args: argparse.Namespace, folder: Path) -> dict:
    """Measure a scenario with checkpoints in ``folder`` and return its figures."""
    device, precision, _ = detect_device()
    dtype = args.dtype or precision
    ways = args.ways or list(scenario.ways)
    config = size_config(args.size, published=args.published, vocab_size=args.vocab, llm=args.llm)
    weights = torch.bfloat16 if dtype == "bf16" else torch.float32
    ours, theirs = write_pair(
        folder / f"{args.size}-{args.llm}-{config.llm_config.vocab_size}-{dtype}", config, weights
    )
    settings = {
        "published": str(ours),
        "transformers": str(theirs),
        "warm_up": int(device == "cuda") if args.warm_up is None else args.warm_up,
        "steps": args.steps,
        "rank": args.rank or RANKS[args.size],
        "dtype": dtype,
        "threads": args.threads,
    }
    if args.profile:
        point = scenario.points[0]
        trace = {"trace": str(args.profile.resolve()), "per_device": point.per_device}
        run(Task(way=ways[0], rows=point.rows, **{**settings, **trace}))
    return {
        "description": scenario.description,
        "size": args.size,
        "llm": args.llm,
        "vocab": config.llm_config.vocab_size,
        "device": torch.cuda.get_device_name()
        if device == "cuda"
        else f"{args.threads or torch.get_num_threads()} CPU threads",
        **{name: settings[name] for name in ("dtype", "rank", "warm_up", "steps", "threads")},
        "rounds": args.rounds,
        "points": [measure_point(point, ways, args.rounds, settings, dtype) for point in scenario.points],
    }


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(scenarios(captions=1, tiles=1))
    parser.add_argument("--scenario", choices=names, default="main", help="what to measure (default %(default)s)")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), help="default: those of the scenario")
    parser.add_argument("--size", choices=[*SIZES, FULL], default="mid", help="of the model (default %(default)s)")
    parser.add_argument("--llm", choices=list(LLMS), default="internlm2", help="language model (default %(default)s)")
    parser.add_argument("--published", type=Path, default=PUBLISHED, help="folder with config.json, for --size full")
    parser.add_argument("--vocab", type=int, help="tokens of the vocabulary (default: the size's)")
    parser.add_argument("--dtype", choices=list(TOLERANCES), help="default: the best of this machine")
    parser.add_argument("--rank", type=int, help=f"of LoRA (default by size: {RANKS})")
    parser.add_argument("--captions", type=int, default=5, help="rows about an image (default %(default)s)")
    parser.add_argument("--tiles", type=int, default=7, help="of an image (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--warm-up", type=int, help="steps before those timed (default: 1 on a GPU, 0 on a CPU)")
    parser.add_argument("--steps", type=int, default=1, help="optimizer steps timed in a round (default %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--folder", type=Path, help="folder for the checkpoints, kept (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="put the scenario's figures into this file, beside those of others")
    parser.add_argument("--plot", type=Path, help="draw all scenarios in the --json file, or this one, to this file")
    parser.add_argument("--profile", type=Path, help="write a Chrome trace of one step of the first way to this file")
    parser.add_argument(MEASURE, metavar="TASK", help=argparse.SUPPRESS)
    return parser


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if args.only_measure:
        print(json.dumps(measure(Task.from_json(args.only_measure))))
        return
    scenario = scenarios(args.captions, args.tiles)[args.scenario]
    kept = json.loads(args.json.read_text(encoding="utf-8")) if args.json and args.json.is_file() else {}
    if args.folder:
        figures = measure_scenario(scenario, args, args.folder.resolve())
    else:
        with tempfile.TemporaryDirectory() as temporary:
            figures = measure_scenario(scenario, args, Path(temporary))
    print_scenario(args.scenario, figures)
    kept[args.scenario] = figures
    if args.json:
        write_json(args.json, kept)
    if args.plot:
        draw(kept, args.plot)


if __name__ == "__main__":
    main()
