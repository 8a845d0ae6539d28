"""Merge the LoRA weights of a finetune into its base.

    python tools/merge_lora.py log/habitat/lora_annots_1/ log_merged/habitat/lora_annots_1

IN is an adapter folder, or a full checkpoint with LoRA inside as the original trainer wrote it. OUT loads with
``AutoModel.from_pretrained(OUT, trust_remote_code=True)`` from any directory.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from internvl.errors import ends_on_user_error
from internvl.logging_utils import setup_logging
from internvl.model.checkpoint import Checkpoint
from internvl.model.merging import CHOICES_OF_DTYPE, describe, merge_checkpoint

SELF_CHECK_QUESTION = "Provide a one-sentence caption for the provided image."
SELF_CHECK_TOKENS = 16


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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


def self_check(unmerged: Checkpoint, merged: Checkpoint) -> str:
    """Return a line on whether both models give the same greedy answer about a fixed picture, in float32."""
    from PIL import Image

    from internvl.inference.engine import Engine, Request

    picture = Image.linear_gradient("L").resize((320, 240)).convert("RGB")
    answers = []
    for checkpoint in (unmerged, merged):
        engine = Engine.load(checkpoint, precision="fp32", device="cpu")
        request = Request([engine.tiles(picture)], SELF_CHECK_QUESTION)
        answers += engine.answer([request], max_new_tokens=SELF_CHECK_TOKENS, do_sample=False)
    if answers[0] == answers[1]:
        return f"Self-check: adapter and merged model both answer {answers[0]!r}."
    return (
        f"Self-check: the adapter answers {answers[0]!r} and the merged model {answers[1]!r}. Rounding the merged "
        "weights can do that; --dtype float32 avoids it."
    )


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    setup_logging()
    started = time.monotonic()
    adapter = Checkpoint(args.input, base=args.base)
    changed = merge_checkpoint(
        adapter,
        args.output,
        dtype=args.dtype,
        overwrite=args.overwrite,
        allow_other_base=args.allow_other_base,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"Merged {changed} weights in {time.monotonic() - started:.1f} s, peak memory {peak:.2f} GB. "
        f"Wrote {describe(args.output)}."
    )
    if not args.skip_self_check:
        print(self_check(adapter, Checkpoint(args.output)))
    print(args.output)


if __name__ == "__main__":
    main()
