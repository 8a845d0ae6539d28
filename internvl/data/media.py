"""Media references of a row → pictures, with their place in messages."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from PIL import Image

from internvl.data.problems import RowError
from internvl.data.video import VideoInfo, read_frames, read_video_info
from internvl.model.internvl_chat.image_processing_internvl_chat import open_image, read_orientation

Result = TypeVar("Result")
# Beyond this a side is no photo; resizing such a strip to tiles would blur everything on it.
MAX_SIDE_RATIO = 200


def media_path(root: Path, name: str, where: str, *, allow_outside_root: bool = False) -> Path:
    """Return the path of a picture or video.

    Raises:
        RowError: ``name`` is an address, or leads out of ``root`` (unless allowed).
    """
    if "://" in name:
        raise RowError(where, "address", f"{name!r} is an address", "Download it and give its path below the root")
    if "\0" in name:
        raise RowError(where, "path", f"{name!r} has a NUL character", "Correct the path")
    path = root / name
    if not allow_outside_root and (Path(name).is_absolute() or ".." in Path(name).parts):
        inside = path.resolve().is_relative_to(root.resolve())
        if not inside:
            raise RowError(
                where,
                "outside the root",
                f"{name!r} leads out of the data set's root {str(root)!r}",
                "Correct the path, or pass --allow_outside_root True if it is meant",
            )
    return path


def read_picture(path: Path, where: str, *, least_size: tuple[int, int] | None = None) -> Image.Image:
    """Read a picture of a row, as RGB; ``least_size`` as in ``open_image``.

    Raises:
        RowError: it is missing, no picture, too large, or cut off.
    """
    image = read(partial(open_image, least_size=least_size), path, "picture", where)
    check_size(image.size, path, where)
    return image


def read_picture_size(path: Path, where: str) -> tuple[int, int]:
    """Return a picture's (width, height) in px from its header, without decoding it; errors as above."""

    def size(path: Path) -> tuple[int, int]:
        with Image.open(path) as image:
            lies_on_its_side = read_orientation(image) >= 5
            return image.size[::-1] if lies_on_its_side else image.size

    found = read(size, path, "picture", where)
    check_size(found, path, where)
    return found


def check_size(size: tuple[int, int], path: Path, where: str) -> None:
    """Refuse pictures no tile could show."""
    if max(size) > MAX_SIDE_RATIO * min(size):
        what = f"{path}: is {size[0]} × {size[1]} px, a strip"
        raise RowError(where, "shape of a picture", what, "Cut it into pictures, or remove the row")


def read_info(path: Path, where: str) -> VideoInfo:
    """Return number and rate of a video's frames.

    Raises:
        RowError: it is missing or no video.
    """
    return read(read_video_info, path, "video", where)


def choose_clip(clip: tuple[float, float] | None, info: VideoInfo, video: str | Path, where: str) -> tuple[int, int]:
    """Return the first frame and the number of frames of a clip, (start, end) in seconds; None takes all.

    Raises:
        RowError: the clip starts behind the video's end.
    """
    if clip is None:
        return 0, info.num_frames
    start = int(clip[0] * info.frames_per_second)
    length = min(math.ceil(clip[1] * info.frames_per_second), info.num_frames) - start
    if length <= 0:
        what = f"clip starts at {clip[0]} s, and the video {str(video)!r} has {info.num_frames} frames at "
        raise RowError(where, "clip", f"{what}{info.frames_per_second:g} a second", "Correct the clip")
    return start, length


def read_video(path: Path, indices: Sequence[int], where: str) -> list[Image.Image]:
    """Read frames of a video; errors as above."""
    return read(lambda path: read_frames(path, indices), path, "video", where)


def read(reader: Callable[[Path], Result], path: Path, noun: str, where: str) -> Result:
    """Call ``reader`` and turn whatever a file can do wrong into an error with its place."""
    try:
        if not path.exists():
            raise RowError(
                where, f"missing {noun}", f"{path}: there is no such {noun}", "Check the path and the data set's root"
            )
        return reader(path)
    except Image.DecompressionBombError as err:
        limit = 2 * Image.MAX_IMAGE_PIXELS
        what = f"{path}: has more than {limit:,} pixels"
        raise RowError(where, f"{noun} too large", what, "Shrink it, or remove its row") from err
    except RowError:
        raise
    except ValueError as err:
        raise RowError(where, f"unreadable {noun}", str(err)) from err  # our readers say what to do themselves
    except (OSError, SyntaxError) as err:
        what = f"{path}: cannot be read as a {noun} ({err})"
        raise RowError(where, f"unreadable {noun}", what, "Replace the file or remove its row") from err
