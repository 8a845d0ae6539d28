"""Finetunes an InternVL-Chat model: calls ``internvl_chat_finetune.py``, but answers --help without loading it."""

import sys
from pathlib import Path

# The parser's own help. Building it imports transformers, which takes seconds; a test keeps the two equal.
HELP = Path(__file__).with_name("finetune_help.txt")


def main(argv: list[str] | None = None) -> int | None:
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(HELP.read_text(encoding="utf-8"), end="")
        return 0
    from internvl.train.internvl_chat_finetune import main as finetune

    return finetune(argv)
