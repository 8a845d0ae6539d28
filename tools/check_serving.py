"""Ask a running OpenAI-style server whether it answers as a checkpoint does.

The command is ``internvl/commands/check_serving.py``, which says how it is used.
"""

import sys

from internvl.commands.check_serving import main

if __name__ == "__main__":
    sys.exit(main())
