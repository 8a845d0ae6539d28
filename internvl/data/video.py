"""Videos: which frames of them are used, and reading those, from a file or from a folder of frames."""

import random
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from internvl.model.internvl_chat.conversation import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, Turn
from internvl.model.internvl_chat.image_processing_internvl_chat import open_image

# A picture or frame of more pixels is not decoded: half a gigabyte as RGB, and what a file of some bytes can claim. It
# is where Pillow refuses by itself, fixed here so that no library that lifts Pillow's limit lifts ours.
MAX_PIXELS = 178_956_970
FRAME_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


class VideoError(ValueError):
    """A video that cannot be used; the message is a whole one, with what to do."""


class VideoInfo(NamedTuple):
    """Number of frames of a video, and how many of them make a second (1 for a folder of frames)."""

    num_frames: int
    frames_per_second: float


def choose_frames(
    num_frames: int,
    video_length: int,
    *,
    sample: str = "rand",
    fix_start: int | None = None,
    input_fps: float = 1,
    max_num_frames: int = -1,
    chance=random,
    permutation=np.random.permutation,
) -> list[int]:
    """Return the indices of the frames to use of a video of ``video_length`` frames, in order.

    The video is cut into ``num_frames`` equal parts; "rand" takes one frame at random of each, "middle" the one in the
    middle, and with ``fix_start`` the one so many behind each part's first. A video of fewer frames has its last one
    repeated. "fps1", "fps0.5", … take frames at that rate instead, at most ``max_num_frames`` if that is above 0.
    ``chance`` and ``permutation`` draw the random numbers. The choice is that of the original's training code.

    Raises:
        ValueError: ``sample`` is none of these.
    """
    if sample.startswith("fps"):
        step = 1 / float(sample.removeprefix("fps"))
        end = video_length / input_fps + step / 2
        if max_num_frames > 0:  # a video that claims to take years has no more frames for it
            end = min(end, (max_num_frames + 1) * step)
        seconds = np.arange(step / 2, end, step)
        indices = [index for index in np.around(seconds * input_fps).astype(int).tolist() if index < video_length]
        return indices[:max_num_frames] if max_num_frames > 0 else indices
    if sample not in ("rand", "middle"):
        raise ValueError(f"There is no way {sample!r} to choose frames: use rand, middle, or fps with a number.")
    parts = min(num_frames, video_length)
    borders = np.linspace(0, video_length, parts + 1).astype(int).tolist()
    # The last frame of a part is never drawn, which leaves parts of one frame without any.
    ranges = [(start, end - 1) for start, end in zip(borders, borders[1:], strict=False)]
    if sample == "rand" and all(start < end for start, end in ranges):
        indices = [chance.choice(range(start, end)) for start, end in ranges]
    elif sample == "rand":
        indices = sorted(permutation(video_length)[:parts].tolist())
    elif fix_start is not None:
        indices = [start + fix_start for start, _ in ranges]
    else:
        indices = [(start + end) // 2 for start, end in ranges]
    return indices + [indices[-1]] * (num_frames - len(indices))


def is_frame_sampling(sample: str) -> bool:
    """Whether ``sample`` is a way to choose frames."""
    if sample in ("rand", "middle"):
        return True
    return re.fullmatch(r"fps\d+(\.\d+)?", sample) is not None and float(sample.removeprefix("fps")) > 0


def place_frames(turns: Sequence[Turn], num_frames: int) -> list[Turn]:
    """Replace ``<video>`` by a line ``Frame1: <image>`` per frame, as the model card's inference example does."""
    frames = "\n".join(f"Frame{number}: {IMAGE_PLACEHOLDER}" for number in range(1, num_frames + 1))
    return [
        turn._replace(value=turn.value.replace(VIDEO_PLACEHOLDER, frames)) if turn.role == "human" else turn
        for turn in turns
    ]


def list_frames(folder: Path) -> list[Path]:
    """Return the pictures of a folder of frames in their order; frame_10 comes after frame_9.

    Raises:
        VideoError: one of them is no file: reading a pipe or a device would not end.
    """
    frames = [file for file in folder.iterdir() if file.suffix.lower() in FRAME_SUFFIXES]
    other = next((file for file in frames if not file.is_file()), None)
    if other:
        raise VideoError(f"{other}: is no file. Replace it or remove it from the frames.")

    def numbers_by_value(file: Path) -> list[tuple[int, str]]:
        text_and_numbers = re.split(r"([0-9]{1,18})", file.name)  # other digits, and longer numbers, are text
        return [(int(part), "") if place % 2 else (0, part) for place, part in enumerate(text_and_numbers)]

    return sorted(frames, key=numbers_by_value)


def read_video_info(path: Path) -> VideoInfo:
    """Return number and rate of a video's frames, counted in its packets, without decoding them.

    Raises:
        VideoError: it is no video, has no frames, or too large ones.
    """
    if path.is_dir():
        info = VideoInfo(len(list_frames(path)), 1)
    else:
        import av  # slow to import, and most data sets have no video

        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                check_frame_size(path, stream.width, stream.height)
                rate = stream.average_rate or stream.guessed_rate or Fraction(1)
                info = VideoInfo(sum(packet.size > 0 for packet in container.demux(stream)), float(rate))
        except (av.FFmpegError, IndexError) as err:
            raise VideoError(f"{path}: cannot be read as a video ({describe(err)}). Replace it or its row.") from err
    if info.num_frames == 0:
        raise VideoError(f"{path}: has no frames. Replace the video or remove its row.")
    return info


def read_frames(path: Path, indices: Sequence[int]) -> list[Image.Image]:
    """Read frames of a video file or folder, as RGB, upright.

    Raises:
        VideoError: it cannot be read, has too large frames, or ends before the last of them.
    """
    if path.is_dir():
        files = list_frames(path)
        try:
            return [open_image(files[index]) for index in indices]
        except ValueError as err:
            raise VideoError(str(err)) from err
    import av

    wanted, frames = set(indices), {}
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            check_frame_size(path, stream.width, stream.height)
            stream.thread_type = "AUTO"
            for number, frame in enumerate(container.decode(stream)):
                check_frame_size(path, frame.width, frame.height)  # it may change on the way
                if number in wanted:
                    image = frame.to_image()
                    frames[number] = image.rotate(frame.rotation, expand=True) if frame.rotation else image
                if len(frames) == len(wanted):
                    break
    except (av.FFmpegError, IndexError) as err:
        raise VideoError(f"{path}: cannot be read as a video ({describe(err)}). Replace it or its row.") from err
    missing = sorted(wanted - frames.keys())
    if missing:
        raise VideoError(f"{path}: ends before frame {missing[0]}. Copy the complete video there.")
    return [frames[index] for index in indices]


def check_frame_size(path: Path, width: int, height: int) -> None:
    """Refuse frames that would fill the memory."""
    if width * height > MAX_PIXELS:
        raise VideoError(
            f"{path}: has frames of {width} × {height} px, more than {MAX_PIXELS:,} pixels. Shrink the video, or "
            "remove its row."
        )


def describe(err: Exception) -> str:
    return "it has no video stream" if isinstance(err, IndexError) else getattr(err, "strerror", None) or str(err)
