"""Talk to a model, or to two side by side, about images and videos in a web page.

    python tools/demo.py log/habitat/lora_annots_1
    python tools/demo.py log/habitat/lora_annots_1 --compare pretrained/InternVL2-2B
    python tools/demo.py tuned --server http://127.0.0.1:8000

MODEL is a base, a merged model or an adapter; with ``--server``, the model's name there. An adapter beside its base
shares one copy of the base's weights. The page is for this machine alone (``--host 0.0.0.0`` for others, who then need
no password); uploads are in a folder that is deleted at the end. Needs Gradio: pip install ".[demo]".
"""

import argparse
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from internvl.cli import Parser
from internvl.errors import UserError, ends_on_user_error

if TYPE_CHECKING:
    from internvl.inference.chat import Talker
    from internvl.inference.engine import Engine

logger = logging.getLogger("internvl.demo")


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder, or the model's name at the server")
    parser.add_argument("--compare", metavar="OTHER", help="a second model, whose answers stand beside")
    parser.add_argument("--server", metavar="URL", help="ask a running server instead of loading the models")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="of the page (default %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default %(default)s: this machine)")
    parser.add_argument("--max-num", type=int, metavar="N", help="most tiles of an image (default: the model's own)")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="default %(default)s")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse values that could not work.

    Raises:
        UserError: names the flag, or Gradio is not installed.
    """
    for flag, value, most in (("port", args.port, 65535), ("max_num", args.max_num, 1 << 20)):
        if value is not None and not 1 <= value <= most:
            raise UserError(f"--{flag.replace('_', '-')}: is {value}. Give a number from 1 to {most}.")
    if args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens: is {args.max_new_tokens}. Give 1 or more.")
    try:
        import gradio  # noqa: F401
    except ImportError as err:
        raise UserError(f'gradio: cannot be imported ({err}). Install it: pip install ".[demo]".') from err


def open_talkers(args: argparse.Namespace) -> list[tuple[str, "Talker"]]:
    """Return the name of each model and what answers for it.

    Raises:
        UserError: there is no such model.
    """
    from internvl.inference.chat import LocalTalker, ServerTalker
    from internvl.inference.client import ServerClient

    names = [args.model, *([args.compare] if args.compare else [])]
    if args.server:
        client = ServerClient(args.server)
        return [(name, ServerTalker(client, client.choose_model(name, "MODEL"))) for name in names]
    if args.compare and (shared := _share_a_base(args, *names)):
        return shared
    return [(name, LocalTalker(_load(args, name))) for name in names]


def _load(args: argparse.Namespace, name: str | Path) -> "Engine":
    from internvl.inference.engine import Engine
    from internvl.model.checkpoint import Checkpoint
    from internvl.model.loading import load_config
    from internvl.model.tiling import most_tiles

    checkpoint = Checkpoint(name)
    max_tiles = args.max_num or most_tiles(load_config(checkpoint))
    return Engine.load(checkpoint, precision=args.precision, auto=True, max_tiles=max_tiles)


def _share_a_base(args: argparse.Namespace, first: str, second: str) -> list[tuple[str, "Talker"]] | None:
    """Return both models on one copy of the weights where one is the other's adapter; None where they are not."""
    from internvl.inference.chat import LocalTalker, WithoutAdapter
    from internvl.inference.engine import Engine
    from internvl.model.adapter_reading import read_adapter
    from internvl.model.adapter_switch import AdapterSwitch
    from internvl.model.checkpoint import Checkpoint
    from internvl.model.loading import load_checkpoint_tokenizer, load_config
    from internvl.model.tiling import most_tiles

    for name, other in ((first, second), (second, first)):
        checkpoint = Checkpoint(name)
        if not checkpoint.is_adapter or checkpoint.base().folder.resolve() != Path(other).resolve():
            continue
        config = load_config(checkpoint)
        if config.use_llm_lora or config.use_backbone_lora:  # the adapter takes the place of the LoRA inside
            return None
        base = _load(args, other)
        switch = AdapterSwitch(base.model, read_adapter(checkpoint, config))
        max_tiles = args.max_num or most_tiles(config)
        adapted = Engine(base.model, load_checkpoint_tokenizer(checkpoint), max_tiles=max_tiles)
        logger.info("%s and %s share the weights of the base.", name, other)
        talkers = {name: LocalTalker(adapted), other: WithoutAdapter(base, switch)}
        return [(each, talkers[each]) for each in (first, second)]
    return None


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    check_arguments(args)
    with tempfile.TemporaryDirectory(prefix="internvl_demo_") as folder:
        # Read when Gradio is imported: uploads go there, and nothing is sent to its makers.
        os.environ.update({"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"})
        from internvl.inference.chat import ChatSettings
        from internvl.inference.demo import build, serve
        from internvl.logging_utils import setup_logging

        setup_logging()
        page = build(open_talkers(args), ChatSettings(max_new_tokens=args.max_new_tokens, max_tiles=args.max_num))
        serve(page, args.host, args.port)
