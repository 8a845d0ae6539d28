"""Check training data before anything trains: every row of a meta file, by file and line.

The command is ``internvl/commands/check_data.py``, which says how it is used.
"""

import sys

from internvl.commands.check_data import main

if __name__ == "__main__":
    sys.exit(main())
