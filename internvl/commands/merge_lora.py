"""Merge the LoRA weights of a finetune into its base.

    python tools/merge_lora.py log/habitat/lora_annots_1/ log_merged/habitat/lora_annots_1

IN is an adapter folder, or a full checkpoint with LoRA inside as the original trainer wrote it. OUT loads with
``AutoModel.from_pretrained(OUT, trust_remote_code=True)`` from any directory.
"""

import argparse
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

from internvl.cli import Parser
from internvl.errors import ends_on_user_error
from internvl.logging_utils import setup_logging
from internvl.model.checkpoint import Checkpoint
from internvl.model.merging import CHOICES_OF_DTYPE, describe, merge_checkpoint

if TYPE_CHECKING:
    from internvl.inference.engine import Engine
    from internvl.model.lora import Adapter

SELF_CHECK_QUESTION = "Provide a one-sentence caption for the provided image."
SELF_CHECK_TOKENS = 16


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, metavar="IN", help="adapter folder, or checkpoint with LoRA inside")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder to write the merged model to")
    parser.add_argument("--dtype", choices=[*CHOICES_OF_DTYPE], help="of the merged weights (default: the base's)")
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="the adapter's base, if it was moved")
    parser.add_argument(
        "--allow-other-base", action="store_true", help="merge into a base with other weights than it was trained on"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    parser.add_argument(
        "--skip-self-check", action="store_true", help="do not load both models to compare their answers"
    )
    return parser


def _self_check(unmerged: Checkpoint, merged: Checkpoint, adapter: "Adapter | None") -> str:
    """Return a line on how the merged folder compares with the adapter, in float32.

    Its weights are compared with PEFT's own merge, and its greedy answer about a fixed image with that of the
    adapter as PEFT puts it on its base. LoRA inside a checkpoint is in PEFT's layers when the model is built.

    Raises:
        UserError: they differ by more than rounding, or PEFT does not read the adapter.
    """
    from internvl.inference.engine import Engine
    from internvl.model.loading import load_checkpoint_tokenizer, source_of
    from internvl.model.merge_check import PeftMerge

    base = source_of(unmerged)
    if adapter is None or base.has_embedded_lora:
        answer, compared = ask(Engine.load(unmerged, precision="fp32", device="cpu")), "Self-check:"
    else:
        reference = PeftMerge(adapter, base)
        if reference.is_hf:
            answer = ask(Engine.load(unmerged, precision="fp32", device="cpu"))
        else:
            tokenizer = load_checkpoint_tokenizer(unmerged)
            answer = ask(Engine(reference.model, tokenizer))
        compared = f"Self-check: {reference.check(merged)};"
        del reference
    merged_answer = ask(Engine.load(merged, precision="fp32", device="cpu"))
    if answer == merged_answer:
        return f"{compared} adapter and merged model both answer {answer!r}."
    return (
        f"{compared} the adapter answers {answer!r} and the merged model {merged_answer!r}. Rounding the merged "
        "weights can do that; --dtype float32 avoids it."
    )


def ask(engine: "Engine") -> str:
    """Return a model's greedy answer about a fixed image."""
    from PIL import Image

    from internvl.inference.engine import Request

    image = Image.linear_gradient("L").resize((320, 240)).convert("RGB")
    request = Request([engine.read(image)], SELF_CHECK_QUESTION)
    return engine.answer([request], max_new_tokens=SELF_CHECK_TOKENS, do_sample=False)[0]


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    setup_logging()
    started = time.monotonic()
    unmerged, lines = Checkpoint(args.input, base=args.base), []

    def inspect(folder: Path, adapter: "Adapter | None") -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        lines.append(f"{time.monotonic() - started:.1f} s, peak memory {peak:.2f} GB. Wrote {describe(folder)}.")
        if not args.skip_self_check:
            lines.append(_self_check(unmerged, Checkpoint(folder), adapter))

    changed = merge_checkpoint(
        unmerged,
        args.output,
        dtype=args.dtype,
        overwrite=args.overwrite,
        allow_other_base=args.allow_other_base,
        check=inspect,
    )
    print(f"Merged {changed} weights in", lines[0])
    print(*lines[1:], args.output, sep="\n")
