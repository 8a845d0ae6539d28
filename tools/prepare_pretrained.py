"""Make a downloaded checkpoint folder work on today's transformers and servers, or check that it is complete.

The command is ``internvl/commands/prepare_pretrained.py``, which says how it is used.
"""

import sys

from internvl.commands.prepare_pretrained import main

if __name__ == "__main__":
    sys.exit(main())
