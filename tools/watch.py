"""Show the runs of a folder side by side.

The command is ``internvl/commands/watch.py``, which says how it is used.
"""

import sys

from internvl.commands.watch import main

if __name__ == "__main__":
    sys.exit(main())
