"""Write an adapter as another program takes it.

    python tools/export_adapter.py log/habitat/lora_annots_1 exported/habitat --for vllm
    python tools/export_adapter.py log/habitat/lora_annots_1 exported/habitat --for lmdeploy
    python tools/export_adapter.py log/habitat/lora_annots_1 exported/habitat --for hf

vllm: for ``vllm serve BASE --enable-lora``. lmdeploy: for LMDeploy's PyTorch engine. hf: for PEFT on the base in
transformers' own layout (tools/convert_to_hf.py). Every weight is kept bit for bit. What a program cannot serve is
refused by name; the merged model (tools/merge_lora.py) always can.
"""

import argparse
from pathlib import Path

from internvl.cli import Parser
from internvl.errors import UserError, ends_on_user_error
from internvl.logging_utils import setup_logging
from internvl.model.atomic_folder import check_free
from internvl.model.checkpoint import Checkpoint
from internvl.model.export import adapter_to_hf, export_for_lmdeploy, export_for_vllm


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, metavar="IN", help="adapter folder")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--for", dest="program", required=True, choices=["vllm", "lmdeploy", "hf"])
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="the adapter's base, if it was moved")
    parser.add_argument(
        "--hf-base", type=Path, metavar="FOLDER", help="with --for hf: the converted base, recorded as OUT's base"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    return parser


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    setup_logging()
    adapter = Checkpoint(args.input, base=args.base)
    if not adapter.is_adapter:
        raise UserError(f"{args.input}: is not an adapter folder. Whole models are served as they are.")
    if args.hf_base and args.program != "hf":
        raise UserError(f"--hf-base: goes with --for hf, not with --for {args.program}. Remove the flag.")
    check_free(args.output, overwrite=args.overwrite)
    base = adapter.base().folder
    if args.program == "vllm":
        rank = export_for_vllm(adapter, args.output)
        print(
            f"Serve it with: vllm serve {base} --trust-remote-code --enable-lora --max-lora-rank {rank} "
            f"--lora-modules NAME={args.output}"
        )
    elif args.program == "lmdeploy":
        export_for_lmdeploy(adapter, args.output)
        print(f"Serve it with: lmdeploy serve api_server {base} --backend pytorch --adapters NAME={args.output}")
    else:
        count = adapter_to_hf(adapter, args.output, hf_base=args.hf_base, overwrite=args.overwrite)
        print(f"Wrote {count} tensors. Load it with: PeftModel.from_pretrained(HF_MODEL, {str(args.output)!r})")
    print(args.output)
