"""Stage "compare": this project beside the plain path and transformers, and a base held in 4 bits."""

import json
import os
import sys

from acceptance.checks import Figures, Setting, check, largest_difference, needs_package, require
from acceptance.material import base, run
from acceptance.training import finetune

TOLERANCE_4BIT = 0.25  # of a loss beside that with whole weights, relative: random weights have no structure to keep


def _benchmark(setting: Setting, script: str, *arguments: str) -> dict:
    """Run a benchmark and return the figures it wrote."""
    out = setting.work / f"{script}.json"
    out.unlink(missing_ok=True)
    size = (
        ["--size", "tiny", "--dtype", "fp32"]
        if setting.rehearsal
        else ["--size", "full", "--published", str(base(setting))]
    )
    # Without torchrun on several GPUs the trainer would spread a batch over them all.
    hidden = "" if setting.rehearsal else "0"
    words = [sys.executable, f"benchmarks/{script}", *size, "--rounds", "1", *arguments, "--json", str(out)]
    run(*words, CUDA_VISIBLE_DEVICES=os.environ.get("CUDA_VISIBLE_DEVICES", hidden))
    return json.loads(out.read_text(encoding="utf-8"))


@check("compare", 240)
def train_benchmark(setting: Setting, figures: Figures) -> None:
    """benchmarks/train.py: rows a second of this project over the plain path's and transformers'."""
    ways = ["--ways", "ours", "plain", "hf", "--steps", str(setting.size(3, 1))]
    found = _benchmark(setting, "train.py", *ways)["main"]["points"][0]
    figures["rows_per_second"] = {way: numbers["rows_per_second"] for way, numbers in found["ways"].items()}
    figures["speed_over"] = {way: numbers["speed"] for way, numbers in found["ratios"].items()}


@check("compare", 200)
def train_benchmark_single(setting: Setting, figures: Figures) -> None:
    """The same for one caption an image, where there is nothing to share."""
    ways = ["--ways", "ours", "plain", "hf", "--scenario", "single", "--steps", str(setting.size(3, 1))]
    found = _benchmark(setting, "train.py", *ways)["single"]["points"][0]
    figures["speed_over"] = {way: numbers["speed"] for way, numbers in found["ratios"].items()}


@check("compare", 200)
def generate_benchmark(setting: Setting, figures: Figures) -> None:
    """benchmarks/generate.py: images a second over the plain path's and transformers'."""
    amount = [str(setting.size(32, 2)), "--batch-size", str(setting.size(16, 2))]
    found = _benchmark(setting, "generate.py", "--images", *amount)
    figures["speed_over"] = {beams: numbers["ours_over"] for beams, numbers in found["beams"].items()}


@check("compare", 240)
def four_bits(setting: Setting, figures: Figures) -> None:
    """A base held in 4 bits trains, near the losses of the whole one, and its adapter merges into the whole one."""
    needs_package("bitsandbytes")
    tiles = ["--max_dynamic_patch", str(setting.size(6, 2))]
    losses = {
        name: finetune(setting, setting.work / f"bits-{name}", setting.size(5, 2), *tiles, *flags)
        for name, flags in {"whole": [], "four": ["--load_in_4bit", "True"]}.items()
    }
    figures["difference"] = largest_difference(losses["four"], losses["whole"])
    figures["losses"] = losses
    require(figures["difference"] < TOLERANCE_4BIT, f"losses differ by {figures['difference']:.2f}")
    adapter, merged = str(setting.work / "bits-four"), str(setting.work / "bits-merged")
    run(sys.executable, "tools/merge_lora.py", adapter, merged, "--overwrite", "--skip-self-check")
