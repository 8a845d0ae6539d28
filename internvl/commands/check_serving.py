"""Ask a running OpenAI-style server whether it answers as a checkpoint does.

    python tools/check_serving.py http://127.0.0.1:8000 --model habitat --checkpoint log_merged/habitat/lora_annots_1
    python tools/check_serving.py http://127.0.0.1:8000 --model habitat --checkpoint log/habitat/lora_annots_1

A dozen short questions with made-up images, at the server and here in float32. Ends with status 0 and one line when
prompt, images and weights are the same, and with status 2 naming what differs: the published chat template, another
limit of tiles, the base without its adapter, the weights of an earlier training, ….
"""

import argparse
import tempfile
from pathlib import Path

from internvl.cli import Parser
from internvl.errors import UserError, ends_on_user_error
from internvl.inference.client import ServerClient
from internvl.inference.engine import Engine
from internvl.inference.serving_check import ServingCheck
from internvl.logging_utils import setup_logging
from internvl.model.checkpoint import ADAPTER_CONFIG, Checkpoint
from internvl.model.hf_conversion import convert_from_hf
from internvl.model.loading import load_config
from internvl.model.tiling import most_tiles


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", metavar="URL", help="address of the server, like http://127.0.0.1:8000")
    parser.add_argument("--model", metavar="NAME", help="the checkpoint's name there, if the server has several")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="FOLDER", help="base, merged model, adapter or -hf folder"
    )
    parser.add_argument(
        "--base", type=Path, metavar="FOLDER", help="the base it was trained on: an adapter's, if it was moved"
    )
    return parser


def _published_layout(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Return a checkpoint as the engine takes it: a model in transformers' layout is converted into ``folder``."""
    if checkpoint.is_adapter or checkpoint.config.get("model_type") != "internvl":
        return checkpoint
    convert_from_hf(checkpoint, folder / "model")
    return Checkpoint(folder / "model")


def load(checkpoint: Checkpoint) -> Engine:
    """Return the engine of a checkpoint in float32, with the tiles of its training."""
    return Engine.load(checkpoint, precision="fp32", max_tiles=most_tiles(load_config(checkpoint)))


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    setup_logging()
    is_adapter = (args.checkpoint / ADAPTER_CONFIG).is_file()
    checkpoint = Checkpoint(args.checkpoint, base=args.base if is_adapter else None)
    client = ServerClient(args.url)
    model = client.choose_model(args.model, "--model")
    with tempfile.TemporaryDirectory(prefix="check-serving-") as folder:
        checkpoint = _published_layout(checkpoint, Path(folder))
        base = checkpoint.base() if is_adapter else Checkpoint(args.base) if args.base else None
        base = _published_layout(base, Path(folder)) if base else None
        hypotheses = {f"{base.folder}, the base without its adapter": lambda: load(base)} if base else {}
        check = ServingCheck(client, model, load(checkpoint), hypotheses=hypotheses)
        findings = check.run()
    if findings:
        raise UserError("\n".join(f"{client.url}: {model}: {finding}." for finding in findings))
    print(f"{client.url}: {model} answers as {args.checkpoint} does: prompts and tiles are the same, {check.summary}.")
