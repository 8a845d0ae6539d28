"""One log format for every command, on the first process only."""

import logging
import warnings

from transformers.utils import logging as transformers_logging

from internvl.distributed import is_main_process


def setup_logging() -> None:
    """Log this project's messages from INFO on (other processes: errors only), and keep libraries to warnings."""
    first = is_main_process()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("internvl").setLevel(logging.INFO if first else logging.ERROR)
    transformers_logging.set_verbosity_warning() if first else transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # DeepSpeed, imported by the trainer, tells every CPU run that it found no accelerator.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    # It says twice where it keeps its fonts, when the home folder may not be written to.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # torch warns at every CPU run that pinned memory needs an accelerator; nobody asked for it to be pinned.
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    # torch counts cores, and tears the progress line; more workers than cores can be right where they wait for a disk.
    warnings.filterwarnings("ignore", message=".*DataLoader will create.*")
    # peft reads a property that transformers has renamed; the user cannot do anything about it.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    # DeepSpeed calls what torch has renamed, dozens of times a step with ZeRO-3.
    warnings.filterwarnings("ignore", message=".*torch.distributed.* is deprecated.*", category=FutureWarning)
