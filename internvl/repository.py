"""Where this checkout is, and whether a script of one checkout runs the package of another."""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def foreign_checkout(script: str | Path) -> str | None:
    """Return what is wrong if ``script`` lies in another checkout than this package; None if it does not.

    An environment that two checkouts share has the package of one of them installed; the scripts of the other would
    run its code without a word.
    """
    path = Path(script).resolve()
    if Path(sys.prefix).resolve() in path.parents:  # an installed command
        return None
    packages = (folder / "internvl" for folder in path.parents)
    # Beside scripts the package is a link.
    own = next((package.resolve().parent for package in packages if (package / "repository.py").is_file()), REPOSITORY)
    if own == REPOSITORY:
        return None
    return (
        f"{path}: belongs to {own}, and the package internvl that this Python finds is that of {REPOSITORY}. Run: pip "
        f"install -e {own} (or set PYTHONPATH={own})."
    )
