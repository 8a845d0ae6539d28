"""Make the COCO caption training and test files from what COCO and Karpathy publish.

The command is ``internvl/commands/prepare_coco.py``, which says how it is used.
"""

import sys

from internvl.commands.prepare_coco import main

if __name__ == "__main__":
    sys.exit(main())
