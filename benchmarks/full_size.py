"""Rehearse the whole job at the true size of a member, with random weights: write, train, merge, load, caption.

    python benchmarks/full_size.py --json full_size.json
    python benchmarks/full_size.py --model pretrained/InternVL3_5-1B --json full_size.json

The weights are random, in bfloat16, and cut into files as large checkpoints are published; config.json and tokenizer
come from ``--model``, whose weights, if any, are not read. Each stage is the command a user types, in a process of
its own; the time and the peak resident memory of its largest process are printed. Needs 14 GB of disk, and 24 GB of
memory when trained in fp32.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from measuring import run_logged
from random_checkpoint import write_weights
from rich.console import Console
from rich.table import Table

from internvl.errors import ends_on_user_error
from internvl.json_files import write_json
from internvl.model.checkpoint import ADAPTER_WEIGHTS, Checkpoint
from internvl.model.loading import load_config

REPOSITORY = Path(__file__).resolve().parents[1]
LORA = "shell/internvl2.0/habitat_2b_finetune/lora.sh"
IMAGE = REPOSITORY / "data" / "habitat" / "images" / "val" / "habitat_val_000000000001.jpg"
WRITE_STAGE = "--only-write"


def write_checkpoint(published: Path, out: Path) -> None:
    """Write a checkpoint of the shape ``published/config.json`` describes, with random bfloat16 weights in shards."""
    out.mkdir(parents=True)
    for file in published.iterdir():
        if file.is_file() and file.suffix in {".json", ".model", ".txt"} and not file.name.endswith("index.json"):
            shutil.copyfile(file, out / file.name)
    write_weights(out, load_config(Checkpoint(published)), torch.bfloat16)


def run_stage(name: str, command: list[str | Path], log: Path, **settings: str) -> dict:
    """Run a command to its end and return its wall time and the peak resident memory of its largest process.

    Raises:
        UserError: it failed; its last lines are in the message.
    """
    measured = run_logged(name, command, log, **settings)
    figures = {"stage": name, "seconds": measured.seconds, "peak_gib": measured.peak_mib / 1024}
    print(f"{name}: {measured.seconds:.0f} s, {figures['peak_gib']:.2f} GiB", flush=True)
    return figures


def rehearse(published: Path, folder: Path, precision: str, steps: int) -> dict:
    """Run every stage below ``folder`` and return its figures, the sizes on disk and the caption."""
    base, adapter, merged = folder / "base", folder / "adapter", folder / "merged"
    python, stages = sys.executable, []

    def stage(name: str, *command: str | Path, **settings: str) -> Path:
        log = folder / f"{len(stages) + 1}.log"
        stages.append(run_stage(name, list(command), log, **settings))
        return log

    stage("write the checkpoint", python, __file__, WRITE_STAGE, base, "--model", published)
    stage("prepare_pretrained.py", python, "tools/prepare_pretrained.py", base)
    stage(
        f"LoRA, {steps} steps, {precision}",
        *["bash", LORA, "--max_steps", str(steps), "--max_dynamic_patch", "1", "--dataloader_num_workers", "0"],
        **{"MODEL": str(base), "META_PATH": "shell/data/habitat.json", "OUTPUT_DIR": str(adapter)},
        **{"GPUS": "1", "BATCH_SIZE": "1", "PER_DEVICE_BATCH_SIZE": "1", "PRECISION": precision},
    )
    stage("merge_lora.py", python, "tools/merge_lora.py", adapter, merged, "--skip-self-check")
    for file in [*base.glob("*.py"), base / "config.json"]:
        shutil.copyfile(file, merged / file.name)
    caption = folder / "caption.json"
    stage("AutoModel, one caption", python, "tools/caption_with_automodel.py", merged, IMAGE, "--json", caption)
    return {
        "precision": precision,
        "parameters": sum(torch.Size(info.shape).numel() for info in Checkpoint(base).tensors.values()),
        "stages": stages,
        "losses": read_losses(adapter),
        "gigabytes": {
            "base": size_of(base),
            "adapter": (adapter / ADAPTER_WEIGHTS).stat().st_size / 1e9,
            "merged": size_of(merged),
        },
        "caption": json.loads(caption.read_text(encoding="utf-8"))[0]["caption"],
    }


def read_losses(adapter: Path) -> list[float]:
    history = json.loads((adapter / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def size_of(folder: Path) -> float:
    """Return the gigabytes of a checkpoint's weights."""
    return sum(file.stat().st_size for file in Checkpoint(folder).weight_files) / 1e9


def print_figures(figures: dict) -> None:
    table = Table(title=f"{figures['parameters']:,} parameters, random weights")
    table.add_column("stage")
    table.add_column("time", justify="right")
    table.add_column("peak memory", justify="right")
    for stage in figures["stages"]:
        table.add_row(stage["stage"], f"{stage['seconds']:.0f} s", f"{stage['peak_gib']:.2f} GiB")
    console = Console()
    console.print(table)
    for name, size in figures["gigabytes"].items():
        console.print(f"{name} on disk: {size:.3f} GB")
    console.print(
        f"losses: {figures['losses']}; the caption (of random weights): {figures['caption']!r}", markup=False
    )


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        type=Path,
        default=REPOSITORY / "pretrained" / "InternVL2-2B",
        help="folder with the published config.json and tokenizer (default %(default)s)",
    )
    parser.add_argument("--folder", type=Path, help="folder for the work, kept (default: a temporary one)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of training (default fp32)")
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps (default %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument(WRITE_STAGE, type=Path, metavar="OUT", help="write the random checkpoint to OUT, nothing else")
    args = parser.parse_args(argv)
    if args.only_write:
        write_checkpoint(args.model, args.only_write)
        return
    load_config(Checkpoint(args.model))  # a wrong folder is told before anything is written
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
        figures = rehearse(args.model.resolve(), args.folder.resolve(), args.precision, args.steps)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            figures = rehearse(args.model.resolve(), Path(temporary), args.precision, args.steps)
    print_figures(figures)
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    main()
