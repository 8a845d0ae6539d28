"""Make preference pairs from a model's own answers: the best and the worst of several, by a score.

The command is ``internvl/commands/make_preferences.py``, which says how it is used.
"""

import sys

from internvl.commands.make_preferences import main

if __name__ == "__main__":
    sys.exit(main())
