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

FRAME_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


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
        seconds = np.arange(step / 2, video_length / input_fps + step / 2, step)
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
    """Return the pictures of a folder of frames in their order; frame_10 comes after frame_9."""
    frames = [file for file in folder.iterdir() if file.suffix.lower() in FRAME_SUFFIXES]
    return sorted(
        frames, key=lambda file: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)]
    )


def read_video_info(path: Path) -> VideoInfo:
    """Return number and rate of a video's frames, counted in its packets, without decoding them.

    Raises:
        ValueError: it is no video, or has no frames.
    """
    if path.is_dir():
        info = VideoInfo(len(list_frames(path)), 1)
    else:
        import av  # slow to import, and most data sets have no video

        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                rate = stream.average_rate or stream.guessed_rate or Fraction(1)
                info = VideoInfo(sum(packet.size > 0 for packet in container.demux(stream)), float(rate))
        except (av.FFmpegError, IndexError) as err:
            raise ValueError(f"{path}: cannot be read as a video ({describe(err)}). Replace it or its row.") from err
    if info.num_frames == 0:
        raise ValueError(f"{path}: has no frames. Replace the video or remove its row.")
    return info


def read_frames(path: Path, indices: Sequence[int]) -> list[Image.Image]:
    """Read frames of a video file or folder, as RGB, upright.

    Raises:
        ValueError: it cannot be read, or ends before the last of them.
    """
    if path.is_dir():
        files = list_frames(path)
        return [open_image(files[index]) for index in indices]
    import av

    wanted, frames = set(indices), {}
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for number, frame in enumerate(container.decode(stream)):
                if number in wanted:
                    image = frame.to_image()
                    frames[number] = image.rotate(frame.rotation, expand=True) if frame.rotation else image
                if len(frames) == len(wanted):
                    break
    except (av.FFmpegError, IndexError) as err:
        raise ValueError(f"{path}: cannot be read as a video ({describe(err)}). Replace it or its row.") from err
    missing = sorted(wanted - frames.keys())
    if missing:
        raise ValueError(f"{path}: ends before frame {missing[0]}. Copy the complete video there.")
    return [frames[index] for index in indices]


def describe(err: Exception) -> str:
    return "it has no video stream" if isinstance(err, IndexError) else getattr(err, "strerror", None) or str(err)
