"""Which of the processes of a run this one is: what torchrun said, and nobody else."""

import logging
import os

logger = logging.getLogger(__name__)
SET_BY_TORCHRUN = "TORCHELASTIC_RUN_ID"
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's number and how many there are: (0, 1) unless torchrun started several."""
    if SET_BY_TORCHRUN not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def is_main_process() -> bool:
    """Whether this is the first process, which speaks and writes for all."""
    return rank_and_world_size()[0] == 0


def ignore_foreign_ranks() -> None:
    """Remove from the environment the rank variables that torchrun did not set.

    Training operators set them for a whole pod, and libraries that read them would wait for processes that never
    come. Several processes started in another way would each think itself alone, so that is said.
    """
    if SET_BY_TORCHRUN in os.environ:
        return
    found = {name: os.environ.pop(name) for name in RANK_VARIABLES if name in os.environ}
    if found.get("WORLD_SIZE", "") not in ("", "0", "1"):
        logger.warning(
            "RANK=%s WORLD_SIZE=%s of the environment are not torchrun's and not used: this process works alone.",
            found.get("RANK", ""),
            found["WORLD_SIZE"],
        )
