"""Images of every mode: what training, the check and evaluation make of them."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from internvl.data.checking import check_dataset
from internvl.data.image_files import image_suffixes
from internvl.data.media import read_image
from internvl.data.problems import RowError
from internvl.data.summary import summarize
from internvl.model.internvl_chat.image_processing_internvl_chat import load_image, open_image
from tests.conftest import make_image
from tests.data.opening import open_rows

CASES = Path(__file__).parents[1] / "cases" / "22"
DARK_LEFT_LIGHT_RIGHT = [
    "depth_mm_16bit.png", "full_16bit.png", "depth_m_float.tiff", "unit_float.tiff", "labels_32bit.tiff",
    "grey_16bit.pgm", "big_endian_16bit.tiff", "grey_alpha.png", "print_cmyk.tiff",
]  # fmt: skip


@pytest.mark.parametrize("name", DARK_LEFT_LIGHT_RIGHT)
def test_greys_of_every_depth_are_seen(name):
    pixels = np.asarray(read_image(CASES / name, "rows.jsonl:1"))
    left, middle, right = (pixels[48, column].mean() for column in (4, 64, 123))
    assert left < 20 and 70 < middle < 140 and right > 130


def test_values_within_eight_bits_and_full_sixteen_bits_stay_as_they_were(tmp_path):
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray((ramp * 257).astype(np.uint16)).save(tmp_path / "sixteen.png")
    assert np.array_equal(np.asarray(open_image(tmp_path / "sixteen.png"))[..., 0], ramp)
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "eight.tiff")
    assert np.array_equal(np.asarray(open_image(tmp_path / "eight.tiff"))[..., 0], ramp)
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tiff")
    assert np.array_equal(np.asarray(open_image(tmp_path / "float.tiff"))[..., 0], ramp)


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_greys_that_are_no_numbers_of_light_are_refused_by_every_reader(tmp_path, value):
    values = np.ones((8, 8), np.float32)
    values[2, 3] = value
    Image.fromarray(values).save(tmp_path / "odd.tiff")
    for reader in (open_image, load_image, lambda file: read_image(file, "rows.jsonl:1")):
        with pytest.raises((ValueError, RowError), match=r"odd\.tiff: cannot be read as an image \(its greys are"):
            reader(tmp_path / "odd.tiff")


def test_a_long_text_in_a_png_is_no_reason_to_refuse_it(tmp_path):
    """Programs keep their whole editing history there: more than Pillow reads by default."""
    make_image(20, 10, 1).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    body = b"zTXt" + b"workflow\0\0" + zlib.compress(b"a" * (3 << 20))
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])  # behind signature and header
    assert read_image(tmp_path / "a.png", "rows.jsonl:1").size == (20, 10)


def test_suffixes_are_those_that_pillow_opens():
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm"} <= image_suffixes()
    assert not {".mpg", ".eps", ".h5", ".mp4", ".heic"} & image_suffixes()


def test_the_deep_check_counts_plain_and_animated_images(tiny_model, tmp_path):
    Image.new("RGB", (40, 30), (9, 9, 9)).save(tmp_path / "plain.png")
    (tmp_path / "logo_rgba.png").write_bytes((CASES / "logo_rgba.png").read_bytes())
    make_image(40, 30, 1).save(tmp_path / "good.png")
    frames = [make_image(40, 30, number).convert("P") for number in (1, 2)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    rows = [
        {
            "image": name,
            "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A."}],
        }
        for name in ("plain.png", "good.png", "moving.gif", "logo_rgba.png", "plain.png")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = open_rows(tmp_path, tiny_model.tokenizer)
    notes = summarize(data, check_dataset(data, deep=True))["datasets"]["rows"]["notes"]
    assert notes == {"images of one plain colour": 2, "images of several frames, the first used": 1}
