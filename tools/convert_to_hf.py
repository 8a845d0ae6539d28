"""Turn a checkpoint into transformers' own InternVL layout, which needs none of this project's code, or back.

The command is ``internvl/commands/convert_to_hf.py``, which says how it is used.
"""

import sys

from internvl.commands.convert_to_hf import main

if __name__ == "__main__":
    sys.exit(main())
