"""Turn a checkpoint into transformers' own InternVL layout, which needs none of this project's code, or back.

    python tools/convert_to_hf.py log_merged/habitat/lora_annots_1 converted/habitat
    python tools/convert_to_hf.py --back converted/habitat log_merged/habitat/lora_annots_2

IN is a base, a merged model or an adapter. OUT loads with ``InternVLForConditionalGeneration``, ``AutoProcessor`` and
``pipeline("image-text-to-text", model=OUT)``, without ``trust_remote_code``; an adapter with ``PeftModel`` on the
converted base. Every weight is kept bit for bit.
"""

import argparse
import resource
import time
from pathlib import Path

from internvl.cli import Parser
from internvl.errors import ends_on_user_error
from internvl.logging_utils import setup_logging
from internvl.model.checkpoint import Checkpoint
from internvl.model.export import adapter_from_hf, adapter_to_hf
from internvl.model.hf_conversion import convert_from_hf, convert_to_hf
from internvl.model.merging import describe

PIXELS_NOTE = (
    "AutoProcessor resizes with torchvision where that is installed, which rounds a few pixels differently. For "
    "exactly the pixels of this project, set processor.image_processor to "
    'AutoImageProcessor.from_pretrained(OUT, backend="pil").'
)


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, metavar="IN", help="checkpoint to convert")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--back", action="store_true", help="from transformers' layout to the published one")
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="an adapter's base, if it was moved")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    return parser


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    setup_logging()
    started = time.monotonic()
    checkpoint = Checkpoint(args.input, base=args.base)
    if checkpoint.is_adapter:
        convert_adapter = adapter_from_hf if args.back else adapter_to_hf
        num_tensors = convert_adapter(checkpoint, args.output, overwrite=args.overwrite)
        print(f"Converted an adapter of {num_tensors} tensors.")
        print(args.output)
        return
    convert = convert_from_hf if args.back else convert_to_hf
    num_tensors = convert(checkpoint, args.output, overwrite=args.overwrite)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"Converted {num_tensors} tensors in {time.monotonic() - started:.1f} s, peak memory {peak:.2f} GB. "
        f"Wrote {describe(args.output)}."
    )
    if not args.back:
        print(PIXELS_NOTE)
    print(args.output)
