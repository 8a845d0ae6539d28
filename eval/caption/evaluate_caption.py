"""Caption a data set with a checkpoint and score the captions.

The command is ``internvl/commands/evaluate_caption.py``, which says how it is used.
"""

import sys

from internvl.commands.evaluate_caption import main

if __name__ == "__main__":
    sys.exit(main())
