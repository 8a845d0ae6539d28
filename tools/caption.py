"""Caption images and videos: a folder, files, or a list of them.

The command is ``internvl/commands/caption.py``, which says how it is used.
"""

import sys

from internvl.commands.caption import main

if __name__ == "__main__":
    sys.exit(main())
