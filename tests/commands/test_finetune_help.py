"""The finetune command in front of the script: help in a moment."""

import subprocess
import sys

from internvl.commands.finetune import HELP, main
from internvl.train.arguments import make_parser


def test_help_is_that_of_the_parser(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    expected = make_parser().format_help()
    assert HELP.read_text(encoding="utf-8") == expected, (
        "flags have changed: COLUMNS=100 python internvl/train/internvl_chat_finetune.py --help > "
        "internvl/commands/finetune_help.txt"
    )
    assert main(["--help"]) == 0 and capsys.readouterr().out == expected


def test_help_loads_no_library():
    code = (
        "import sys; from internvl.commands.finetune import main; main(['-h']); "
        "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
