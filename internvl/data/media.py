"""Media references of a row → images, with their place in messages."""

import os
import stat
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from PIL import Image

from internvl.data.missing_files import find_similar
from internvl.data.problems import RowError
from internvl.data.video import VideoError, VideoInfo, read_chosen_frames, read_video_info
from internvl.errors import printable, shorten
from internvl.limits import MAX_NAME, MAX_PIXELS, MAX_SIDE_RATIO
from internvl.model.internvl_chat.image_processing_internvl_chat import read_orientation, to_upright_rgb

Result = TypeVar("Result")
DATA_ADDRESSES = ("data:image/", "data:video/", "data:application/", "data:;base64,")  # RFC 2397
TOO_LONG = "Give a path; an image in base64 is to be written to a file first"


def media_path(root: Path, name: str, where: str, *, allow_outside_root: bool = False) -> Path:
    """Return the path of an image or video.

    Args:
        root: the folder that the data set's paths start from.
        name: the path in the row.
        where: the row's file and line, for messages.
        allow_outside_root: accept what leads out of ``root``.

    Raises:
        RowError: ``name`` is an address or no file name, or leads out of ``root`` (unless allowed), be it through
            ``..`` or through a link; of a folder of frames, none of them may.
    """
    if name.startswith(DATA_ADDRESSES):
        raise RowError(
            where, "base64", f"{shorten(name)} holds the image itself", "Write it to a file and give the file's path"
        )
    if "://" in name:
        raise RowError(
            where, "address", f"{shorten(name)} is an address", "Download it and give its path below the root"
        )
    if "\0" in name:
        raise RowError(where, "path", f"{shorten(name)} has a NUL character", "Correct the path")
    if printable(name) != name:
        raise RowError(where, "path", f"{shorten(name)} has characters that cannot be shown", "Rename the file")
    if len(name) > MAX_NAME:
        raise RowError(where, "path", f"{shorten(name)} has more than {MAX_NAME:,} characters", TOO_LONG)
    path = root / name
    if not allow_outside_root and leads_outside(str(root), name):
        raise RowError(
            where,
            "outside the root",
            _describe_way_out(root, name),
            "Pass --allow_outside_root True if it is meant, as with images linked from another disk; else correct the "
            "path",
        )
    return path


def _describe_way_out(root: Path, name: str) -> str:
    """Return how a path leads out of its root: in the same words for all images behind one link."""
    path, outside = root, f"out of the data set's root {str(root)!r}"
    for part in Path(name).parts:
        path = path / part
        if path.is_symlink() and not os.path.realpath(path).startswith(os.path.join(_real_folder(str(root)), "")):
            target = Path(os.path.realpath(path))
            if target.is_dir():
                return f"the link {str(path.relative_to(root))!r} leads to {target}, {outside}"
            return f"links in {str(path.parent.relative_to(root))!r} lead to {target.parent}, {outside}"
    return f"{shorten(name)} leads {outside}"


def leads_outside(root: str, name: str) -> bool:
    """Whether the file called ``name`` below ``root``, or a frame in that folder, really lies elsewhere."""
    path, real_root = os.path.join(root, name), os.path.join(_real_folder(root), "")
    folder, last = os.path.split(path)
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        mode = 0  # the reader says that it is missing; here only its place counts
    simple = last not in ("", os.curdir, os.pardir) and not stat.S_ISLNK(mode)
    real = os.path.join(_real_folder(folder), last) if simple else os.path.realpath(path)
    if not os.path.join(real, "").startswith(real_root):
        return True
    if (simple and not stat.S_ISDIR(mode)) or not os.path.isdir(real):
        return False
    with os.scandir(real) as entries:
        links = [entry.path for entry in entries if entry.is_symlink()]
    return any(not os.path.realpath(link).startswith(real_root) for link in links)


@lru_cache(maxsize=1 << 16)
def _real_folder(folder: str) -> str:
    """Return where a folder really lies; asked once, since a data set has its images in few."""
    return os.path.realpath(folder)


def read_image(path: Path, where: str, *, least_size: tuple[int, int] | None = None) -> Image.Image:
    """Read an image of a row, as RGB; ``least_size`` as in ``open_image``.

    Raises:
        RowError: it is missing, no image, too large, or cut off.
    """

    def decode(path: Path) -> Image.Image:
        with Image.open(path) as image:
            _check_size(_upright_size(image), path, where)
            return to_upright_rgb(image, least_size=least_size)

    return read(decode, path, "image", where)


def read_image_size(path: Path, where: str) -> tuple[int, int]:
    """Return an image's (width, height) in px from its header, without decoding it; errors as above."""

    def size(path: Path) -> tuple[int, int]:
        with Image.open(path) as image:
            return _upright_size(image)

    found = read(size, path, "image", where)
    _check_size(found, path, where)
    return found


def count_frames(path: Path) -> int:
    """Return how many frames an image file has; the second image of a phone's JPEG (MPO) is none."""
    with Image.open(path) as image:
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) in px as seen with the camera held upright."""
    lies_on_its_side = read_orientation(image) >= 5
    return image.size[::-1] if lies_on_its_side else image.size


def _check_size(size: tuple[int, int], path: Path, where: str) -> None:
    """Refuse images that would fill the memory, and those that no tile could show."""
    if size[0] * size[1] > MAX_PIXELS:
        what = f"{path}: is {size[0]} × {size[1]} px, more than {MAX_PIXELS:,} pixels"
        raise RowError(where, "image too large", what, "Shrink it, or remove its row")
    if max(size) > MAX_SIDE_RATIO * min(size):
        what = f"{path}: is {size[0]} × {size[1]} px, a strip"
        raise RowError(where, "shape of an image", what, "Cut it into images, or remove the row")


def read_info(path: Path, where: str) -> VideoInfo:
    """Return when a video's frames are shown.

    Raises:
        RowError: it is missing or no video.
    """
    return read(read_video_info, path, "video", where)


def choose_clip(clip: tuple[float, float] | None, info: VideoInfo, video: str | Path, where: str) -> tuple[int, int]:
    """Return the first frame and the number of frames of a clip.

    Args:
        clip: (start, end) in seconds; None takes the whole video.
        info: when the video's frames are shown.
        video: its name, for messages.
        where: the row's file and line, for messages.

    Raises:
        RowError: the clip starts behind the video's end.
    """
    if clip is None:
        return 0, info.num_frames
    start, end = info.frame_at(clip[0]), info.times[-1] + 1 / info.frames_per_second
    length = info.frames_before(clip[1]) - start
    if length <= 0 or clip[0] >= end:
        what = (
            f"clip starts at {clip[0]} s, and the video {str(video)!r} ends at {end:.3g} s ({info.num_frames} frames)"
        )
        raise RowError(where, "clip", what, "Correct the clip")
    return start, length


def read_video(path: Path, choose: Callable[[VideoInfo], Sequence[int]], where: str) -> list[Image.Image]:
    """Read the frames of a video that ``choose`` picks; errors as above."""
    return read(lambda path: read_chosen_frames(path, choose), path, "video", where)


def read(reader: Callable[[Path], Result], path: Path, noun: str, where: str) -> Result:
    """Call ``reader`` and turn whatever a file can do wrong into an error with its place.

    Args:
        reader: takes ``path`` and returns what is read.
        path: of a file, or of a folder of frames.
        noun: "image" or "video", for messages.
        where: the row's file and line, for messages.

    Raises:
        RowError: the file is missing, is not a file, is too large or cannot be read.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe would be waited for, a device never ends
            raise RowError(where, f"unreadable {noun}", f"{path}: is not a file", "Replace it or remove its row")
        return reader(path)
    except FileNotFoundError as err:
        what, todo = f"{path}: there is no such {noun}", "Check the path and the data set's root"
        similar = find_similar(path)
        if similar:
            what, todo = f"{what}, but {similar.path} is there: {similar.difference}", similar.todo
        raise RowError(where, f"missing {noun}", what, todo) from err
    except Image.DecompressionBombError as err:
        what = f"{path}: has more than {MAX_PIXELS:,} pixels"
        raise RowError(where, f"{noun} too large", what, "Shrink it, or remove its row") from err
    except RowError:
        raise
    except VideoError as err:
        raise RowError(where, f"unreadable {noun}", str(err)) from err  # it says what to do itself
    except Exception as err:  # decoders raise whatever a damaged file makes them stumble over, not only OSError
        article = "an" if noun == "image" else "a"
        what = f"{path}: cannot be read as {article} {noun} ({str(err) or type(err).__name__})"
        raise RowError(where, f"unreadable {noun}", what, "Replace the file or remove its row") from err
