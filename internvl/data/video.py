"""Videos: which frames of them are used, and reading those, from a file or from a folder of frames."""

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from internvl.data.image_files import UNREADABLE_SUFFIXES, image_suffixes
from internvl.limits import MAX_PIXELS
from internvl.model.internvl_chat.conversation import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, Turn
from internvl.model.internvl_chat.image_processing_internvl_chat import open_image

NUM_FRAMES = 8  # of a video that a model is asked about, as the model card's example takes
# Files that are videos by their name.
VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg"})
TIME_TOLERANCE = 1e-6  # seconds; times come from whole numbers of a fraction of a second


class VideoError(ValueError):
    """A video that cannot be used; the message is a whole one, with what to do."""


@dataclass(frozen=True)
class VideoInfo:
    """When each frame of a video is shown.

    ``times`` are the frames' in seconds, float64 (frames,), from 0 on in order; ``frames_per_second`` is the rate that
    the file names, an average where it varies (1 for a folder of frames).
    """

    times: np.ndarray
    frames_per_second: float

    @classmethod
    def at_rate(cls, num_frames: int, frames_per_second: float) -> "VideoInfo":
        """Return a video of a constant rate."""
        return cls(np.arange(num_frames) / frames_per_second, frames_per_second)

    @property
    def num_frames(self) -> int:
        """Return the number of frames."""
        return len(self.times)

    @cached_property
    def has_constant_rate(self) -> bool:
        """Whether every frame is shown within half a frame of where the rate puts it."""
        expected = np.arange(self.num_frames) / self.frames_per_second
        return bool(np.all(np.abs(self.times - expected) < 0.5 / self.frames_per_second))

    def frame_at(self, seconds: float) -> int:
        """Return which frame is shown at a time, as if the last one were shown for ever."""
        if self.has_constant_rate:
            return int(seconds * self.frames_per_second)
        return max(0, int(np.searchsorted(self.times, seconds + TIME_TOLERANCE, side="right")) - 1)

    def frames_before(self, seconds: float) -> int:
        """Return how many frames are shown before a time."""
        if self.has_constant_rate:
            return min(math.ceil(seconds * self.frames_per_second), self.num_frames)
        return int(np.searchsorted(self.times, seconds - TIME_TOLERANCE, side="left"))


class FewerFramesError(VideoError):
    """Decoding shows fewer frames than the packets of a video promise; ``info`` is about those that came."""

    def __init__(self, message: str, info: VideoInfo):
        super().__init__(message)
        self.info = info


def choose_frames(
    num_frames: int,
    video_length: int,
    *,
    sample: str = "rand",
    fix_start: int | None = None,
    input_fps: float = 1,
    times: np.ndarray | None = None,
    max_num_frames: int = -1,
    rng=random,
    permutation=np.random.permutation,
) -> list[int]:
    """Return the indices of the frames to use of a video, in order: those that the original's training code chooses.

    "rand" and "middle" cut the video into ``num_frames`` equal parts and take one frame of each. A video of fewer
    frames has its last one repeated.

    Args:
        num_frames: how many to take with "rand" and "middle".
        video_length: how many the video has.
        sample: "rand" takes one frame at random of each part, "middle" the one in the middle; "fps1", "fps0.5", … take
            frames at that rate instead.
        fix_start: with "middle", take the frame this far behind each part's first.
        input_fps: frames a second of the video.
        times: with "fps…", where the rate varies: (video_length,) seconds from the start of what is used.
        max_num_frames: with "fps…", most frames if it is above 0.
        rng: draws a frame of a part.
        permutation: draws from the whole video instead, where a part has one frame alone.

    Raises:
        ValueError: ``sample`` is none of these.
    """
    if sample.startswith("fps"):
        step = 1 / float(sample.removeprefix("fps"))
        duration = video_length / input_fps if times is None else times[-1] + 1 / input_fps
        end = duration + step / 2
        if max_num_frames > 0:  # a video that claims to take years has no more frames for it
            end = min(end, (max_num_frames + 1) * step)
        seconds = np.arange(step / 2, end, step)
        if times is None:
            indices = np.around(seconds * input_fps).astype(int).tolist()
        else:
            indices = (np.searchsorted(times, seconds[seconds < duration], side="right") - 1).clip(0).tolist()
        indices = [index for index in indices if index < video_length]
        return indices[:max_num_frames] if max_num_frames > 0 else indices
    if sample not in ("rand", "middle"):
        raise ValueError(f"There is no way {sample!r} to choose frames: use rand, middle, or fps with a number.")
    parts = min(num_frames, video_length)
    borders = np.linspace(0, video_length, parts + 1).astype(int).tolist()
    # The last frame of a part is never drawn, which leaves parts of one frame without any.
    ranges = [(start, end - 1) for start, end in zip(borders, borders[1:], strict=False)]
    if sample == "rand" and all(start < end for start, end in ranges):
        indices = [rng.choice(range(start, end)) for start, end in ranges]
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
    """Return the images of a folder of frames in their order; frame_10 comes after frame_9.

    Raises:
        VideoError: one of them is not a file, since reading a pipe or a device would not end; or is an image of a kind
            that cannot be read, which would be left out of the video.
    """
    files = [file for file in folder.iterdir() if not file.name.startswith(".")]
    frames = [file for file in files if file.suffix.lower() in image_suffixes()]
    other = next((file for file in frames if not file.is_file()), None)
    if other:
        raise VideoError(f"{other}: is not a file. Replace it or remove it from the frames.")
    unreadable = next((file for file in sorted(files) if file.suffix.lower() in UNREADABLE_SUFFIXES), None)
    if unreadable:
        raise VideoError(f"{unreadable}: is an image of a kind that Pillow does not read. Convert the frames to JPEG.")

    def numbers_by_value(file: Path) -> list[tuple[int, str]]:
        text_and_numbers = re.split(r"([0-9]{1,18})", file.name)  # other digits, and longer numbers, are text
        return [(int(part), "") if place % 2 else (0, part) for place, part in enumerate(text_and_numbers)]

    return sorted(frames, key=numbers_by_value)


def read_video_info(path: Path) -> VideoInfo:
    """Return when a video's frames are shown, from the times of its packets, without decoding them.

    Raises:
        VideoError: it is not a video, has no frames, or too large ones.
    """
    if path.is_dir():
        info = VideoInfo.at_rate(len(list_frames(path)), 1)
    else:
        import av  # slow to import, and most data sets have no video

        try:
            with av.open(str(path)) as container:
                stream = _best_stream(container)
                _check_frame_size(path, stream.width, stream.height)
                info = _frame_times(_packet_times(container, stream), stream)
        except (av.FFmpegError, IndexError) as err:
            raise VideoError(f"{path}: cannot be read as a video ({describe(err)}). Replace it or its row.") from err
    if info.num_frames == 0:
        raise VideoError(f"{path}: has no frames. Replace the video or remove its row.")
    return info


def _best_stream(container):
    """Return the video stream a player would show: not the cover image of a file, where there is another.

    Raises:
        IndexError: there is none.
    """
    return container.streams.best("video") or container.streams.video[0]


def _packet_times(container, stream) -> list:
    """Return the time stamp of each frame that decoding shows, in the stream's units, None where there is none.

    A file that was cut without encoding it again keeps packets before the cut, which its edit list hides; and what
    stands before the first key frame cannot be decoded.
    """
    times, decodable = [], False
    for packet in container.demux(stream):
        decodable |= packet.is_keyframe
        if packet.size > 0 and decodable and not packet.is_discard:
            times.append(packet.pts)
    return times


def _frame_times(stamps: list, stream) -> VideoInfo:
    """Return when frames with these time stamps are shown; at the stream's rate where they have none."""
    rate = float(stream.average_rate or stream.guessed_rate or 1)
    if not stamps or any(stamp is None for stamp in stamps):
        return VideoInfo.at_rate(len(stamps), rate)
    ordered = np.sort(np.array(stamps, dtype=np.float64)) * float(stream.time_base)
    return VideoInfo(ordered - ordered[0], rate)


def read_frames(path: Path, indices: Sequence[int]) -> list[Image.Image]:
    """Read frames of a video file or folder, as RGB, upright.

    Raises:
        VideoError: it cannot be read, has too large frames, or (FewerFramesError) ends before the last of them.
    """
    if path.is_dir():
        files = list_frames(path)
        try:
            return [open_image(files[index]) for index in indices]
        except ValueError as err:
            raise VideoError(str(err)) from err
    import av

    wanted, frames, stamps = set(indices), {}, []
    try:
        with av.open(str(path)) as container:
            stream = _best_stream(container)
            _check_frame_size(path, stream.width, stream.height)
            stream.thread_type = "AUTO"
            for number, frame in enumerate(container.decode(stream)):
                _check_frame_size(path, frame.width, frame.height)  # it may change on the way
                stamps.append(frame.pts)
                if number in wanted:
                    image = frame.to_image()
                    frames[number] = image.rotate(frame.rotation, expand=True) if frame.rotation else image
                if len(frames) == len(wanted):
                    break
    except (av.FFmpegError, IndexError) as err:
        raise VideoError(f"{path}: cannot be read as a video ({describe(err)}). Replace it or its row.") from err
    missing = sorted(wanted - frames.keys())
    if missing:
        message = f"{path}: ends before frame {missing[0]}. Copy the complete video there."
        raise FewerFramesError(message, _frame_times(stamps, stream))
    return [frames[index] for index in indices]


def read_chosen_frames(path: Path, choose: Callable[[VideoInfo], Sequence[int]]) -> list[Image.Image]:
    """Read the frames that ``choose`` picks of a video.

    Where decoding shows fewer than the packets promise, ``choose`` picks again of those that came.

    Raises:
        VideoError: as :func:`read_frames`, or none of the frames can be decoded.
    """
    try:
        return read_frames(path, choose(read_video_info(path)))
    except FewerFramesError as err:
        if err.info.num_frames == 0:
            raise VideoError(f"{path}: has no frames. Replace the video or remove its row.") from err
        return read_frames(path, choose(err.info))


def _check_frame_size(path: Path, width: int, height: int) -> None:
    """Refuse frames that would fill the memory."""
    if width * height > MAX_PIXELS:
        raise VideoError(
            f"{path}: has frames of {width} × {height} px, more than {MAX_PIXELS:,} pixels. Shrink the video, or "
            "remove its row."
        )


def describe(err: Exception) -> str:
    """Return what an error of reading a video says, as part of a sentence."""
    return "it has no video stream" if isinstance(err, IndexError) else getattr(err, "strerror", None) or str(err)
