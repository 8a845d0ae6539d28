"""Ask a checkpoint the questions of a data set and say how many answers are right.

The command is ``internvl/commands/evaluate_answers.py``, which says how it is used.
"""

import sys

from internvl.commands.evaluate_answers import main

if __name__ == "__main__":
    sys.exit(main())
