"""Train the shipped set with and without shared images, several seeds each, and compare the captions' scores.

    python benchmarks/sharing_quality.py --json sharing_quality.json

Each training is one epoch of the quickstart's recipe by the real launcher, and each evaluation the real
``evaluate.sh`` on the val images; both ways take turns. The question is whether the difference between the ways'
means is less than the spread of seeds.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from measuring import run_logged
from rich.console import Console
from rich.table import Table

from internvl.errors import ends_on_user_error
from internvl.json_files import write_json

LORA = "shell/internvl2.0/habitat_2b_finetune/lora.sh"
WAYS = {"plain": "False", "shared": "True"}


def train_and_score(way: str, seed: int, folder: Path, base: str) -> dict:
    """Train and evaluate once below ``folder``; returns scores and times."""
    adapter, result = folder / "adapter", folder / "result"
    folder.mkdir(parents=True)
    flags = ["--learning_rate", "1e-3", "--lora_dropout", "0.1", "--save_strategy", "no", "--seed", str(seed)]
    run_logged(
        f"training {way}, seed {seed}",
        ["bash", LORA, *flags, "--share_image_prefix", WAYS[way]],
        folder / "train.log",
        **{"MODEL": base, "OUTPUT_DIR": str(adapter), "GPUS": "1", "BATCH_SIZE": "16", "PER_DEVICE_BATCH_SIZE": "16"},
    )
    run_logged(
        f"evaluating {way}, seed {seed}",
        ["bash", "evaluate.sh", str(adapter), "caption-habitat", "--dynamic", "--out-dir", str(result)],
        folder / "evaluate.log",
    )
    scores = json.loads((result / "scores.json").read_text(encoding="utf-8"))
    history = json.loads((adapter / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    trained = next(entry for entry in reversed(history) if "train_runtime" in entry)
    return {
        "way": way,
        "seed": seed,
        "CIDEr": scores["CIDEr"],
        "Bleu_4": scores["Bleu_4"],
        "steps": trained["step"],
        "seconds": trained["train_runtime"],
    }


def summarize(runs: list[dict]) -> dict:
    """Return mean, spread and time of each way, and the difference of the means."""
    ways = {}
    for way in WAYS:
        own = [run for run in runs if run["way"] == way]
        ciders = [run["CIDEr"] for run in own]
        ways[way] = {
            "CIDEr_mean": statistics.mean(ciders),
            "CIDEr_spread": max(ciders) - min(ciders),
            "seconds": statistics.median(run["seconds"] for run in own),
        }
    return {
        **ways,
        "difference": ways["shared"]["CIDEr_mean"] - ways["plain"]["CIDEr_mean"],
        "speedup": ways["plain"]["seconds"] / ways["shared"]["seconds"],
    }


def print_figures(runs: list[dict], summary: dict) -> None:
    table = Table(title="habitat, one epoch, with and without shared images")
    for column in ("seed", *(f"{way} {what}" for way in WAYS for what in ("CIDEr", "Bleu_4", "seconds"))):
        table.add_column(column, justify="right")
    for seed in sorted({run["seed"] for run in runs}):
        cells = [str(seed)]
        for way in WAYS:
            own = next(run for run in runs if (run["way"], run["seed"]) == (way, seed))
            cells += [f"{own['CIDEr']:.3f}", f"{own['Bleu_4']:.3f}", f"{own['seconds']:.0f}"]
        table.add_row(*cells)
    console = Console()
    console.print(table)
    spread = max(summary[way]["CIDEr_spread"] for way in WAYS)
    console.print(
        f"difference of the means {summary['difference']:+.3f}, spread of seeds {spread:.3f}; "
        f"{summary['speedup']:.2f} times faster"
    )


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="pretrained/InternVL2-Tiny", help="checkpoint to start from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, help="folder for the work, kept (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder.resolve() if args.folder else Path(temporary)
        runs = []
        for seed in args.seeds:
            for way in WAYS:
                runs.append(train_and_score(way, seed, folder / f"{way}-{seed}", args.base))
                print(runs[-1], flush=True)
    summary = summarize(runs)
    print_figures(runs, summary)
    if args.json:
        write_json(args.json, {"runs": runs, **summary})


if __name__ == "__main__":
    main()
