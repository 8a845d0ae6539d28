"""Say what differs between trainings.

The command is ``internvl/commands/compare_runs.py``, which says how it is used.
"""

import sys

from internvl.commands.compare_runs import main

if __name__ == "__main__":
    sys.exit(main())
