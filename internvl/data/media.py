"""Media references of a row to pictures. Video frames will be read here, too."""

from pathlib import Path

from PIL import Image

from internvl.errors import UserError
from internvl.model.internvl_chat.image_processing_internvl_chat import open_image


def read_picture(root: Path, name: str, where: str) -> Image.Image:
    """Read a picture of a row, as RGB.

    Raises:
        UserError: it is missing, no picture, or cut off; the message starts with ``where``.
    """
    try:
        return open_image(root / name)
    except (FileNotFoundError, ValueError) as err:
        raise UserError(f"{where}: {err}") from err


def read_picture_size(root: Path, name: str, where: str) -> tuple[int, int]:
    """Return a picture's (width, height) in px from its header, without decoding it; errors as above."""
    try:
        with Image.open(root / name) as image:
            return image.size
    except FileNotFoundError as err:
        raise UserError(
            f"{where}: {root / name}: there is no such picture. Check the path and the data set's root."
        ) from err
    except OSError as err:
        raise UserError(
            f"{where}: {root / name}: cannot be read as a picture ({err}). Replace the file or remove its row."
        ) from err
