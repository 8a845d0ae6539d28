"""Videos: which frames, from files and folders, and how they are told to the model."""

import random
import struct
from pathlib import Path

import av
import numpy as np
import pytest

from internvl.data import video
from internvl.data.media import choose_clip
from internvl.data.video import (
    VideoInfo,
    choose_frames,
    is_frame_sampling,
    list_frames,
    place_frames,
    read_chosen_frames,
    read_frames,
    read_video_info,
)
from internvl.model.internvl_chat.conversation import Turn
from tests.conftest import make_image


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A video of 40 grey frames at 10 a second; frame n has the level 6 n."""
    file = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        for number in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 6 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def test_a_video_is_measured_without_decoding_it(clip):
    info = read_video_info(clip)
    assert info.num_frames == 40 and info.frames_per_second == 10.0 and info.has_constant_rate
    assert info.times == pytest.approx(np.arange(40) / 10)


def test_exactly_the_wanted_frames_are_read_and_repeated_ones_too(clip):
    frames = read_frames(clip, [0, 7, 21, 39, 39])
    levels = [np.asarray(frame).mean() for frame in frames]
    assert levels == pytest.approx([0, 42, 126, 234, 234], abs=4)
    assert {frame.mode for frame in frames} == {"RGB"}


CASES = Path(__file__).parents[1] / "cases"


@pytest.mark.parametrize(
    ("name", "num_frames"),
    [("02/cut_at_3.mp4", 25), ("02/joined.ts", 25), ("02/whole.mp4", 100), ("15/screen.mp4", 50)],
)
def test_as_many_frames_are_counted_as_decoding_shows(name, num_frames):
    """Edit lists hide packets before a cut; nothing before the first key frame can be decoded."""
    file = CASES / name
    with av.open(str(file)) as container:
        decoded = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    assert len(decoded) == num_frames
    assert read_video_info(file).times == pytest.approx(np.array(decoded) - decoded[0])
    assert len(read_chosen_frames(file, lambda info: [0, info.num_frames - 1])) == 2


@pytest.mark.parametrize("name", ["screen.mp4", "screen.webm"])
@pytest.mark.parametrize(("clip", "red"), [((0, 8), True), ((8, 10), False), ((5, 7), True), ((7.9, 8.0), True)])
def test_a_clip_of_a_video_of_variable_rate_takes_what_is_shown_in_its_seconds(name, clip, red):
    """Two red frames in 8 s, then 48 blue ones in 2 s; the average rate says something else."""
    file = CASES / "15" / name

    def choose(info):
        start, length = choose_clip(clip, info, file, "rows.jsonl:1")
        return range(start, start + length)

    colours = [np.asarray(frame)[32, 32] for frame in read_chosen_frames(file, choose)]
    assert colours and all((colour[0] > 120) == red for colour in colours)


def test_a_rate_of_a_video_of_variable_rate_goes_by_its_times():
    info = read_video_info(CASES / "15" / "screen.mp4")
    assert not info.has_constant_rate
    chosen = choose_frames(0, 50, sample="fps1", input_fps=info.frames_per_second, times=info.times)
    # Shown at 0.5, 1.5, … 9.5 s: four times each red frame, then two blue ones.
    assert chosen == [0, 0, 0, 0, 1, 1, 1, 1, 14, 38]


def test_where_decoding_shows_fewer_frames_than_promised_others_are_chosen(clip, monkeypatch):
    monkeypatch.setattr(video, "read_video_info", lambda path: VideoInfo.at_rate(60, 10.0))
    asked = []

    def choose(info):
        asked.append(info.num_frames)
        return [0, info.num_frames - 1]

    frames = read_chosen_frames(clip, choose)
    assert asked == [60, 40] and np.asarray(frames[1]).mean() == pytest.approx(234, abs=4)


def test_the_cover_image_of_a_video_is_not_its_stream(tmp_path):
    """A file with an attached image in front of its film, as shops and phones write them."""
    file = tmp_path / "covered.mkv"
    with av.open(str(file), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        film = container.add_stream("mpeg4", rate=10)
        film.width, film.height, film.pix_fmt = 64, 64, "yuv420p"
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        for _ in range(5):
            container.mux(film.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        for stream in (cover, film):
            container.mux(stream.encode())
    assert read_video_info(file).num_frames == 5
    assert read_chosen_frames(file, lambda info: [4])[0].size == (64, 64)


@pytest.mark.parametrize(
    ("cosine", "sine", "red"), [(1, 0, "left"), (0, 1, "top"), (-1, 0, "right"), (0, -1, "bottom")]
)
def test_a_video_that_was_filmed_upright_is_seen_upright(tmp_path, cosine, sine, red):
    """The display matrix of the mp4's header takes a point (x, y) to (cos x - sin y, sin x + cos y), y being down."""
    file = tmp_path / "phone.mp4"
    level = np.zeros((64, 128, 3), np.uint8)
    level[:, :32, 0] = 255  # red at the left as stored
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(level, format="rgb24")))
        container.mux(stream.encode())
    one = 1 << 16
    plain = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", cosine * one, sine * one, 0, -sine * one, cosine * one, 0, 0, 0, 1 << 30)
    content = file.read_bytes()
    start = content.index(plain, content.index(b"tkhd"))
    file.write_bytes(content[:start] + turned + content[start + len(plain) :])
    frame = np.asarray(read_chosen_frames(file, lambda info: [0])[0])[..., 0]
    sides = {"left": frame[:, :8], "top": frame[:8], "right": frame[:, -8:], "bottom": frame[-8:]}
    assert frame.shape == ((64, 128) if cosine else (128, 64))
    assert max(sides, key=lambda side: sides[side].mean()) == red and sides[red].min() > 200


def test_frames_that_pillow_does_not_read_are_not_left_out_in_silence(tmp_path):
    make_image(20, 20, 1).save(tmp_path / "frame_1.png")
    (tmp_path / "frame_2.heic").touch()
    with pytest.raises(ValueError, match=r"frame_2\.heic: is an image of a kind that Pillow does not read"):
        list_frames(tmp_path)


def test_a_video_that_ends_early_names_the_missing_frame(clip):
    with pytest.raises(ValueError, match=r"clip\.mp4: ends before frame 40"):
        read_frames(clip, [3, 40])


def test_a_folder_of_frames_is_a_video_in_the_order_of_its_numbers(tmp_path):
    for number in (10, 9, 1):
        make_image(20, 20, number).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "notes.txt").touch()
    assert [file.name for file in list_frames(tmp_path)] == ["frame_1.png", "frame_9.png", "frame_10.png"]
    assert read_video_info(tmp_path).num_frames == 3
    assert read_frames(tmp_path, [2])[0].tobytes() == make_image(20, 20, 10).tobytes()


@pytest.mark.parametrize("sample", ["rand", "middle", "fps2"])
@pytest.mark.parametrize("length", [1, 2, 7, 40, 1000])
def test_frames_are_in_order_and_inside_the_video(sample, length):
    indices = choose_frames(
        8,
        length,
        sample=sample,
        input_fps=10,
        rng=random.Random(1),
        permutation=np.random.RandomState(1).permutation,
    )
    assert indices == sorted(indices) and all(0 <= index < length for index in indices)
    assert sample == "fps2" or len(indices) == 8
    # One frame of each eighth of the video.
    assert sample == "fps2" or length < 16 or [index * 8 // length for index in indices] == list(range(8))


def test_a_rate_gives_as_many_frames_as_the_video_has_time_for():
    assert len(choose_frames(1, 895, sample="fps1", input_fps=30)) == 30
    assert len(choose_frames(1, 895, sample="fps1", input_fps=30, max_num_frames=4)) == 4


@pytest.mark.parametrize(
    ("sample", "known"),
    [
        ("rand", True),
        ("middle", True),
        ("fps1", True),
        ("fps0.5", True),
        ("fps", False),
        ("fps0", False),
        ("all", False),
    ],
)
def test_ways_to_choose_frames_are_checked(sample, known):
    assert is_frame_sampling(sample) == known
    if not known and not sample.startswith("fps"):
        with pytest.raises(ValueError, match="There is no way 'all'"):
            choose_frames(8, 40, sample=sample)


def test_frames_are_told_as_the_model_card_does():
    turns = [Turn("system", "Short."), Turn("human", "<video>\nWhat happens?"), Turn("gpt", "A <video>.")]
    assert place_frames(turns, 2) == [
        turns[0],
        Turn("human", "Frame1: <image>\nFrame2: <image>\nWhat happens?"),
        turns[2],
    ]


def test_a_real_video_is_read(shared):
    file = shared / "media" / "red-panda.mp4"
    info = read_video_info(file)
    assert info.num_frames == 895 and info.frames_per_second == pytest.approx(30, abs=0.1)
    frames = read_frames(file, [0, 447, 894])
    assert {frame.size for frame in frames} == {(360, 640)} or {frame.size for frame in frames} == {(640, 360)}
    assert np.asarray(frames[0]).std() > 20
