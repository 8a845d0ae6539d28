"""Talk to a model about images and videos in a terminal.

    python tools/chat.py log/habitat/lora_annots_1 --image room.jpg
    echo "What is this?" | python tools/chat.py pretrained/InternVL2-2B --image a.jpg      # the answer alone
    python tools/chat.py tuned --server http://127.0.0.1:8000

MODEL is a base, a merged model or an adapter; with ``--server``, the model's name there. Inside, a line that starts
with / is a command:

    /image a.jpg b.jpg    images for the next question      /video a.mp4     a video, or a folder of frames
    /system TEXT          what the model is to be           /tiles N         most tiles of an image from now on
    /retry                answer the last question again    /clear           forget the conversation
    /save FILE            add it to a JSONL file of rows    /quit            end (or Ctrl-D)

Ctrl-C ends an answer, not the program.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from internvl.cli import Parser
from internvl.errors import UserError, ends_on_user_error

if TYPE_CHECKING:
    from internvl.inference.chat import ChatSession

PROMPT = "> "
HELP = "Commands: /image FILE…  /video FILE  /system TEXT  /tiles N  /retry  /clear  /save FILE  /quit"


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder, or the model's name at the server")
    parser.add_argument("--image", nargs="+", default=[], metavar="FILE", help="images for the first question")
    parser.add_argument("--video", metavar="FILE", help="a video, or a folder of frames, for the first question")
    parser.add_argument("--system", metavar="TEXT", help="system message instead of the model's own")
    parser.add_argument("--server", metavar="URL", help="talk to a running server instead of loading the model")
    parser.add_argument("--max-num", type=int, metavar="N", help="most tiles of an image (default: the model's own)")
    parser.add_argument("--num-frames", type=int, default=8, metavar="N", help="of a video (default %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="default %(default)s")
    parser.add_argument("--temperature", type=float, default=0.0, help="of sampling; 0, the default, is greedy")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    return parser


def open_session(args: argparse.Namespace) -> "ChatSession":
    """Load the model, or find it at the server.

    Raises:
        UserError: a value is out of range, or there is no such model.
    """
    for flag, value, least in (
        ("--max-num", args.max_num, 1),
        ("--num-frames", args.num_frames, 1),
        ("--max-new-tokens", args.max_new_tokens, 1),
        ("--temperature", args.temperature, 0),
    ):
        if value is not None and value < least:
            raise UserError(f"{flag}: is {value}. Give {least} or more.")
    # Loaded here: --help and a mistake on the command line need not wait for them.
    from internvl.inference.chat import ChatSession, ChatSettings, LocalTalker, ServerTalker, Talker
    from internvl.inference.client import ServerClient
    from internvl.inference.engine import Engine
    from internvl.logging_utils import setup_logging
    from internvl.model.checkpoint import Checkpoint
    from internvl.model.loading import load_config
    from internvl.model.tiling import most_tiles

    setup_logging()
    logging.getLogger("internvl").setLevel(logging.WARNING)
    if args.server:
        client = ServerClient(args.server)
        talker: Talker = ServerTalker(client, client.choose_model(args.model, "MODEL"))
        max_tiles = args.max_num
    else:
        checkpoint = Checkpoint(args.model)
        max_tiles = args.max_num or most_tiles(load_config(checkpoint))
        talker = LocalTalker(Engine.load(checkpoint, precision=args.precision, auto=True, max_tiles=max_tiles))
    settings = ChatSettings(args.max_new_tokens, args.temperature, max_tiles, args.num_frames)
    session = ChatSession(talker, settings, system=args.system)
    if args.image:
        session.attach_images(args.image)
    if args.video:
        session.attach_video(args.video)
    return session


def run_command(session: "ChatSession", line: str) -> Iterator[str] | None:
    """Do what a line with a slash says; returns the pieces of an answer where it asks for one.

    Raises:
        UserError: there is no such command, or it does not fit.
        EOFError: /quit.
    """
    name, _, rest = line.partition(" ")
    try:
        words = shlex.split(rest)
    except ValueError as err:
        raise UserError(f"{name}: {rest!r} cannot be read ({err}). Close the quotation.") from err
    if name == "/image" and words:
        session.attach_images(words)
    elif name == "/video" and len(words) == 1:
        session.attach_video(words[0])
    elif name == "/system":
        session.system = rest.strip() or None
    elif name == "/tiles" and rest.strip().isdigit() and int(rest) > 0:
        session.settings = replace(session.settings, max_tiles=int(rest))
    elif name == "/retry":
        return session.retry()
    elif name == "/clear":
        session.clear()
    elif name == "/save" and len(words) == 1:
        session.save(words[0])
    elif name == "/quit":
        raise EOFError
    else:
        raise UserError(f"{line}: is not understood. {HELP}")
    return None


def talk(session: "ChatSession") -> None:
    """Ask for lines and answer them until the input ends."""
    try:
        import readline  # noqa: F401 - line editing and history, where Python has it
    except ImportError:
        logging.getLogger(__name__).debug("no line editing: this Python has no readline")
    print(HELP)
    while True:
        try:
            line = input(PROMPT).strip()
            if line:
                show(run_command(session, line) if line.startswith("/") else session.ask(line))
        except UserError as err:
            print(f"error: {err}", file=sys.stderr)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(the question is not part of the conversation)")


def show(pieces: Iterator[str] | None) -> None:
    """Write the pieces of an answer as they come."""
    if pieces is None:
        return
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if sys.stdin.isatty():
        talk(open_session(args))
        return
    question = sys.stdin.read().strip()
    if not question:
        raise UserError("standard input: is empty. Pipe the question into it, or call this in a terminal.")
    print("".join(open_session(args).ask(question)).strip())
