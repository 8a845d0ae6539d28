"""Talk to a model, or to two side by side, about images and videos in a web page.

The command is ``internvl/commands/demo.py``, which says how it is used.
"""

import sys

from internvl.commands.demo import main

if __name__ == "__main__":
    sys.exit(main())
