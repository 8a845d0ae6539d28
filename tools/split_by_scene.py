"""Split a JSONL file of rows so that training and evaluation have no scene in common.

The command is ``internvl/commands/split_by_scene.py``, which says how it is used.
"""

import sys

from internvl.commands.split_by_scene import main

if __name__ == "__main__":
    sys.exit(main())
