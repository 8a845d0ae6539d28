"""The check before training: facts of every row, long rows, several processes, and the kept result."""

import json
import os

import numpy as np
import pytest
from PIL import Image, ImageOps

from internvl.data import check_cache
from internvl.data.check_cache import check_with_cache
from internvl.data.checking import BAD, CUT, GOOD, LONG, check_dataset
from internvl.data.video import VideoInfo
from internvl.errors import UserError
from internvl.model.internvl_chat.image_processing_internvl_chat import open_image
from tests.conftest import make_image, num_tiles, pixels
from tests.data.opening import open_rows

ANSWER = {"from": "gpt", "value": "A cup."}


def row(question: str, answer: str = "A cup.", **fields) -> dict:
    return {**fields, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


MIXED = [
    row("Hello."),
    row("<image>\nWhat?", image="wide.png"),
    row("<image> or <image>?", image=["wide.png", "square.png"]),
    row("<video>\nWhat happens?", video="frames"),
    row("Hello."),
    row("Tell me. " + "more and more " * 400),
    row("Tell me.", "more and more " * 400),
    row("<image>" * 8 + "more and more " * 5, image=["wide.png"] * 8),
]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "frames").mkdir()
    for number in range(9):
        make_image(60, 60, number).save(tmp_path / "frames" / f"{number}.png")
    make_image(180, 60, 1).save(tmp_path / "wide.png")
    make_image(60, 60, 1).save(tmp_path / "square.png")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in MIXED))
    return tmp_path


def statuses(dataset) -> list[int]:
    return check_dataset(dataset).files[0].row_stats["status"].tolist()


def test_all_four_kinds_are_told_apart_and_measured_exactly(root, tiny_model):
    data = open_rows(root, tiny_model.tokenizer)
    row_stats = check_dataset(data).files[0].row_stats
    assert row_stats["kind"].tolist() == [0, 1, 2, 3, 0, 0, 0, 2]
    for position in range(5):
        sample = data[position]
        is_image = sample.input_ids == data.image_token_id
        assert row_stats["image_tokens"][position] == is_image.sum()
        assert row_stats["text_tokens"][position] == (~is_image).sum()
        assert row_stats["tiles"][position] == num_tiles(sample)
    assert 8 <= row_stats["tiles"][3] <= 32  # one tile a frame


def test_a_rows_frames_are_the_same_every_time_and_others_with_another_seed(root, tiny_model):
    once, again = (pixels(open_rows(root, tiny_model.tokenizer)[3]) for _ in range(2))
    assert once.equal(again)
    lengths = set()
    for seed in range(6):
        data = open_rows(root, tiny_model.tokenizer)
        data.seed = seed
        lengths.add(num_tiles(data[3]))
    assert len(lengths) > 1


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("truncate", [BAD, CUT, BAD]),
        ("fewer_tiles", [BAD, CUT, GOOD]),
        ("skip", [LONG, LONG, LONG]),
        ("error", [BAD, BAD, BAD]),
    ],
)
def test_long_rows_are_treated_as_asked(root, tiny_model, policy, expected):
    # Its answer cut off whole; its answer cut short; its images too many for the length.
    settings = {"on_long_sample": policy, "max_seq_length": 170, "max_dynamic_patch": 24}
    data = open_rows(root, tiny_model.tokenizer, **settings)
    assert statuses(data)[5:] == expected
    for position, status in zip((5, 6, 7), expected, strict=True):
        if status in (GOOD, CUT):
            assert len(data[position].input_ids) <= 170
        else:
            with pytest.raises(UserError, match="max_seq_length"):
                data[position]


def test_paths_out_of_the_root_are_allowed_when_asked(root, tiny_model):
    make_image(60, 60, 1).save(root.parent / "outside.png")
    lines = [row("<image>", image=name) for name in ("../outside.png", str(root.parent / "outside.png"))]
    (root / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert statuses(open_rows(root, tiny_model.tokenizer)) == [BAD, BAD]
    data = open_rows(root, tiny_model.tokenizer, allow_outside_root=True)
    assert statuses(data) == [GOOD, GOOD] and pixels(data[1]).shape == (1, 3, 56, 56)


def test_a_clip_takes_frames_of_its_seconds_only(root, tiny_model):
    (root / "rows.jsonl").write_text(json.dumps(row("<video>", video="frames", clip=[2, 5])) + "\n")
    data = open_rows(root, tiny_model.tokenizer)
    frames = data.choose_frames(data.files[0][1].row(0), (0, 0), VideoInfo.at_rate(9, 1))
    assert set(frames) == {2, 3, 4} and statuses(data) == [GOOD]


def test_fewer_tiles_drops_frames_of_a_long_video(root, tiny_model):
    whole = open_rows(root, tiny_model.tokenizer)
    frames = num_tiles(whole[3])
    length = len(whole[3].input_ids)
    data = open_rows(root, tiny_model.tokenizer, max_seq_length=length - 40, on_long_sample="fewer_tiles")
    sample = data[3]
    assert 1 < num_tiles(sample) < frames
    assert length - 40 - 2 * length // frames < len(sample.input_ids) <= length - 40
    assert (sample.input_ids == data.image_token_id).sum() == 4 * num_tiles(sample)
    assert statuses(data)[3] == GOOD


def test_fewer_tiles_takes_no_more_away_than_needed(root, tiny_model):
    rows = root / "rows.jsonl"
    rows.write_text(json.dumps(row("<image>\nWhat?", image="wide.png")) + "\n")
    full = open_rows(root, tiny_model.tokenizer, max_dynamic_patch=12)
    length = len(full[0].input_ids)
    for missing in range(1, 12):
        settings = {"max_dynamic_patch": 12, "max_seq_length": length - missing, "on_long_sample": "fewer_tiles"}
        data = open_rows(root, tiny_model.tokenizer, **settings)
        limit = data.choose_tile_limit(data.specs[0], data.files[0][1].row(0), [(180, 60)])
        room = length - missing - full.count_text_tokens([list(data.files[0][1].row(0).turns)])[0]
        assert (
            4 * data.images.tiling.num_tiles((180, 60), limit)
            <= room
            < 4 * data.images.tiling.num_tiles((180, 60), limit + 1)
        )
        assert statuses(data) == [GOOD]


IMAGES = {
    "palette.png": lambda image: (image.convert("P"), {}),
    "palette.gif": lambda image: (image.convert("P"), {}),
    "transparent.png": lambda image: (image.convert("RGBA"), {}),
    "grey.png": lambda image: (image.convert("L"), {}),
    "bitmap.png": lambda image: (image.convert("1"), {}),
    "cmyk.jpg": lambda image: (image.convert("CMYK"), {"quality": 95}),
    "progressive.jpg": lambda image: (image, {"progressive": True, "quality": 95}),
    "animated.gif": lambda image: (image, {"save_all": True, "append_images": [image.rotate(90)]}),
    "animated.webp": lambda image: (image, {"save_all": True, "append_images": [image.rotate(90)], "lossless": True}),
    "sixteen.png": lambda image: (Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), {}),
    **{
        f"turned_{turn}.jpg": lambda image, turn=turn: (image, {"exif": exif(turn), "quality": 95})
        for turn in range(1, 9)
    },
}


def exif(orientation: int) -> Image.Exif:
    """EXIF data of a camera that was held this way."""
    data = Image.Exif()
    data[0x0112] = orientation
    return data


@pytest.mark.parametrize("name", IMAGES)
def test_every_kind_of_image_is_read_upright_and_its_header_tells_its_tiles(root, tiny_model, name):
    original = make_image(180, 60, 1)
    saved, options = IMAGES[name](original)
    saved.save(root / name, **options)
    (root / "rows.jsonl").write_text(json.dumps(row("<image>\nWhat?", image=name)) + "\n")
    data = open_rows(root, tiny_model.tokenizer)
    assert check_dataset(data).lengths(data.index).tolist() == [len(data[0].input_ids)]
    read = open_image(root / name)
    assert read.mode == "RGB"
    # Pillow's own turning is the oracle; colours other than those of the first frame would show in the mean.
    upright = ImageOps.exif_transpose(Image.open(root / name))
    assert read.size == upright.size
    expected = original.convert("L") if name in ("grey.png", "sixteen.png") else upright.convert("RGB")
    difference = np.abs(np.asarray(read, int) - np.asarray(expected.convert("RGB"), int))
    assert difference.max() <= 1


def test_damaged_exif_does_not_cost_the_image(root):
    make_image(60, 60, 1).save(root / "a.jpg", exif=b"Exif\0\0not a header")
    assert open_image(root / "a.jpg").size == (60, 60)


def test_several_processes_find_what_one_does(root, tiny_model, monkeypatch):
    rows = root / "rows.jsonl"
    lines = rows.read_text().splitlines(keepends=True)[:5] + ["{broken\n"]
    rows.write_text("".join(lines * 30))
    monkeypatch.setattr("internvl.data.checking.ROWS_PER_TASK", 16)
    monkeypatch.setattr("internvl.data.checking.ROWS_FOR_PROCESSES", 0)
    data = open_rows(root, tiny_model.tokenizer)
    one, two = check_dataset(data, processes=1), check_dataset(data, processes=2)
    assert (one.files[0].row_stats == two.files[0].row_stats).all() and one.errors == two.errors
    assert one.files[0].media == two.files[0].media and len(one.errors) == 30


def test_rows_that_are_there_twice_have_the_same_hash(root, tiny_model):
    content = check_dataset(open_rows(root, tiny_model.tokenizer)).files[0].row_stats["content"]
    assert content[0] == content[4] and len(np.unique(content)) == len(MIXED) - 1


class TestCache:
    @pytest.fixture(autouse=True)
    def own_cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("INTERNVL_CACHE", str(tmp_path / "cache"))

    @pytest.fixture
    def calls(self, monkeypatch):
        """Counts real checks."""
        calls = []
        real = check_cache.check_dataset
        monkeypatch.setattr(check_cache, "check_dataset", lambda *a, **k: calls.append(1) or real(*a, **k))
        return calls

    @pytest.fixture
    def good_rows(self, root):
        (root / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in MIXED[:5]))
        return root

    def test_the_second_check_reads_the_first_ones_result(self, good_rows, tiny_model, calls):
        first = check_with_cache(open_rows(good_rows, tiny_model.tokenizer))
        second = check_with_cache(open_rows(good_rows, tiny_model.tokenizer))
        assert len(calls) == 1 and (first.files[0].row_stats == second.files[0].row_stats).all()

    @pytest.mark.parametrize("change", ["rows", "image", "image gone", "settings", "seed"])
    def test_whatever_changes_is_checked_again(self, good_rows, tiny_model, calls, change):
        check_with_cache(open_rows(good_rows, tiny_model.tokenizer))
        settings = {}
        if change == "rows":
            (good_rows / "rows.jsonl").write_text(json.dumps(MIXED[0]) + "\n")
        elif change == "image":
            make_image(60, 180, 1).save(good_rows / "wide.png")
            os.utime(good_rows / "wide.png", ns=(1, 1))
        elif change == "image gone":
            (good_rows / "wide.png").unlink()
        elif change == "settings":
            settings = {"max_dynamic_patch": 2}
        data = open_rows(good_rows, tiny_model.tokenizer, **settings)
        data.seed = int(change == "seed")
        again = check_with_cache(data)
        assert len(calls) == 2 and bool(again.errors) == (change == "image gone")

    def test_errors_are_never_taken_from_the_cache(self, root, tiny_model, calls):
        for _ in range(2):
            assert check_with_cache(open_rows(root, tiny_model.tokenizer)).errors
        assert len(calls) == 2

    def test_a_damaged_result_is_not_used(self, good_rows, tiny_model, calls, tmp_path):
        check_with_cache(open_rows(good_rows, tiny_model.tokenizer))
        (kept,) = (tmp_path / "cache" / "checks").iterdir()
        kept.write_bytes(kept.read_bytes()[:100])
        assert not check_with_cache(open_rows(good_rows, tiny_model.tokenizer)).errors and len(calls) == 2

    def test_a_cache_that_cannot_be_written_is_no_error(self, good_rows, tiny_model, tmp_path, caplog):
        (tmp_path / "cache").write_text("a file")
        assert not check_with_cache(open_rows(good_rows, tiny_model.tokenizer)).errors
        assert "could not be kept" in caplog.text
