"""Write an adapter as another program takes it.

The command is ``internvl/commands/export_adapter.py``, which says how it is used.
"""

import sys

from internvl.commands.export_adapter import main

if __name__ == "__main__":
    sys.exit(main())
