"""Merge the LoRA weights of a finetune into its base.

The command is ``internvl/commands/merge_lora.py``, which says how it is used.
"""

import sys

from internvl.commands.merge_lora import main

if __name__ == "__main__":
    sys.exit(main())
