"""Talk to a model about images and videos in a terminal.

The command is ``internvl/commands/chat.py``, which says how it is used.
"""

import sys

from internvl.commands.chat import main

if __name__ == "__main__":
    sys.exit(main())
