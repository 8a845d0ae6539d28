"""Turn annotations of other tools into training rows, or training rows into messages.

The command is ``internvl/commands/convert_annotations.py``, which says how it is used.
"""

import sys

from internvl.commands.convert_annotations import main

if __name__ == "__main__":
    sys.exit(main())
