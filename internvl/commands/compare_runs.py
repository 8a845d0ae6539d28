"""Say what differs between trainings: arguments, data and versions, and how their curves came out.

    python tools/compare_runs.py log/habitat/lora_annots_1 log/habitat/lora_annots_2
    python tools/compare_runs.py log/a log/b log/c --plot curves.png

Prints a table of what differs between the records of the runs (training_args.json) and one of their results, and says
up to which step the losses of the first two are equal. A run that goes on counts as far as its last checkpoint.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from internvl.cli import Parser
from internvl.errors import UserError, ends_on_user_error, shorten
from internvl.train.checkpointing import last_good_checkpoint
from internvl.train.run_folder import FINISHED, RECORD, RunFolder

# Of the record: differs between any two runs, or says again what other entries say.
NOT_COMPARED = ("command", "output_dir", "logging_dir", "run_name")
EVALUATED = {"eval_loss": min, "eval_CIDEr": max, "eval_accuracy": max, "eval_macro_F1": max}
SHARE_OF_ENDS = 10  # of a curve's logged losses, a tenth is its start and a tenth its end
ABSENT = "–"


@dataclass(frozen=True)
class Run:
    """A training: its name, its record flattened to name → value, and what it logged."""

    name: str
    settings: dict[str, object]
    history: list[dict]
    finished: bool

    @property
    def losses(self) -> dict[int, float]:
        """The logged training losses by step."""
        return {entry["step"]: entry["loss"] for entry in self.history if "loss" in entry}


def read_run(folder: Path) -> Run:
    """Read an output folder.

    Raises:
        UserError: it is none, or has neither a result nor a checkpoint yet.
    """
    record = RunFolder(folder, {}).read_record()
    if record is None:
        raise UserError(f"{folder}: holds no {RECORD} that can be read. Name the OUTPUT_DIR of a training.")
    state = folder / FINISHED
    finished = state.is_file()
    if not finished:
        checkpoint = last_good_checkpoint(folder)
        if checkpoint is None:
            raise UserError(f"{folder}: has neither a result nor a checkpoint yet. Wait for the first one.")
        state = Path(checkpoint) / FINISHED
    try:
        history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    except (OSError, ValueError, KeyError) as err:
        raise UserError(f"{state}: cannot be read ({err}). Name another run.") from err
    return Run(str(folder), _flatten(record), history, finished)


def _flatten(record: dict, prefix: str = "") -> dict[str, object]:
    """Return the entries of a record by name; those of the groups of arguments by the names of their flags."""
    flat: dict[str, object] = {}
    for name, value in record.items():
        if name in NOT_COMPARED:
            continue
        if isinstance(value, dict):
            flat |= _flatten(value, "--" if name.endswith("Arguments") else f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differences(runs: Sequence[Run]) -> dict[str, list[object]]:
    """Return the settings in which runs differ: name → the value of each, None where a run has none."""
    names = sorted({name for run in runs for name in run.settings})
    found = {name: [run.settings.get(name) for run in runs] for name in names}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}


def results(run: Run) -> dict[str, str]:
    """Return how a run came out, as text by what it is."""
    losses = list(run.losses.values())
    ends = max(1, len(losses) // SHARE_OF_ENDS)
    summary = run.history[-1] if run.history else {}
    shown = {
        "state": "finished" if run.finished else "goes on",
        "steps": f"{max((entry.get('step', 0) for entry in run.history), default=0):,}",
        "loss, first tenth": f"{sum(losses[:ends]) / ends:.4f}" if losses else ABSENT,
        "loss, last tenth": f"{sum(losses[-ends:]) / ends:.4f}" if losses else ABSENT,
    }
    for name, best in EVALUATED.items():
        measured = {entry["step"]: entry[name] for entry in run.history if name in entry}
        if measured:
            value = best(measured.values())
            step = next(step for step, found in measured.items() if found == value)
            shown[f"best {name}"] = f"{value:.4f} at step {step:,}"
    if "train_runtime" in summary:
        shown["seconds"] = f"{summary['train_runtime']:,.0f}"
        shown["rows/s"] = f"{summary['train_samples_per_second']:.1f}"
    return shown


def first_difference(first: Run, second: Run) -> str:
    """Return in a sentence up to which step two runs have the same losses."""
    common = sorted(first.losses.keys() & second.losses.keys())
    if not common:
        return "No step was logged in both of the first two runs."
    differing = next((step for step in common if first.losses[step] != second.losses[step]), None)
    if differing is None:
        return f"The first two runs have the same loss in all {len(common):,} steps that both logged."
    if differing == common[0]:
        return f"The first two runs differ from the first logged step on ({differing:,})."
    return f"The first two runs have the same losses before step {differing:,}."


def print_comparison(runs: Sequence[Run]) -> None:
    """Print what differs and what came out."""
    console = Console()
    differ = differences(runs)
    table = Table(title="What differs" if differ else "Nothing differs but the output folders")
    outcome = Table(title="What came out")
    for shown in (table, outcome):
        shown.add_column("")
        for run in runs:
            shown.add_column(escape(run.name), overflow="fold")
    for name, values in differ.items():
        table.add_row(escape(name), *(ABSENT if value is None else escape(shorten(value, 60)) for value in values))
    came_out = [results(run) for run in runs]
    for name in dict.fromkeys(name for result in came_out for name in result):
        outcome.add_row(name, *(result.get(name, ABSENT) for result in came_out))
    console.print(table)
    console.print(outcome)
    print(first_difference(runs[0], runs[1]))


def plot(runs: Sequence[Run], file: Path) -> None:
    """Draw the losses of all runs, those of held-out rows dashed, to a picture."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for run in runs:
        (line,) = axes.plot(run.losses.keys(), run.losses.values(), label=run.name, linewidth=1)
        held_out = {entry["step"]: entry["eval_loss"] for entry in run.history if "eval_loss" in entry}
        if held_out:
            label = f"{run.name}, held out"
            axes.plot(held_out.keys(), held_out.values(), "--", color=line.get_color(), label=label)
    axes.set(xlabel="step", ylabel="loss (nats per supervised token)")
    axes.legend()
    axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folders of trainings")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw their losses to a .png, .svg or .pdf")
    return parser


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if len(args.runs) < 2:
        raise UserError(f"{args.runs[0]}: is one run. Name two or more to compare.")
    if args.plot and args.plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"--plot: {args.plot} is no picture's name. End it with .png, .svg or .pdf.")
    runs = [read_run(folder) for folder in args.runs]
    print_comparison(runs)
    if args.plot:
        plot(runs, args.plot)
        print(args.plot)
