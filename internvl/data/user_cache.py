"""Where results are kept between runs: ``$INTERNVL_CACHE``, or ``internvl`` in the user's cache folder."""

import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)


def user_cache(name: str, what: str) -> Path | None:
    """Return the folder of that name in the cache; None where there is none, as a container's user has no home.

    ``what`` is kept there, for the message that says it is not.
    """
    if os.environ.get("INTERNVL_CACHE"):
        return Path(os.environ["INTERNVL_CACHE"]) / name
    try:
        user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        logger.warning("%s is not kept: there is no home folder. INTERNVL_CACHE names another.", what)
        return None
    return user / "internvl" / name
