"""Tiling and pixel values, against golden grids, torchvision and a plain loop."""

import json

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from internvl.model.internvl_chat.image_processing_internvl_chat import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    InternVLChatImageProcessor,
    choose_grid,
    count_tiles,
    load_image,
    open_image,
    split_into_tiles,
    to_pixel_values,
)
from tests.conftest import make_image


def test_grids_equal_the_golden_ones(shared):
    golden = json.loads((shared / "reference" / "tiling" / "grids.json").read_text())
    for row in golden["rows"]:
        width, height, low, high, thumbnail, size, columns, rows, tiles = row
        assert choose_grid(width, height, low, high, size) == (columns, rows), row
        counted = count_tiles(width, height, min_num=low, max_num=high, image_size=size, use_thumbnail=thumbnail)
        assert counted == tiles, row


@pytest.mark.parametrize(("width", "height"), [(640, 480), (100, 300), (448, 448), (33, 900)])
def test_tiles_are_the_resized_image_cut_row_by_row(width, height):
    image = make_image(width, height, 1)
    options = {"min_num": 1, "max_num": 6, "image_size": 56}
    tiles = split_into_tiles(image, **options, use_thumbnail=True)
    columns, rows = choose_grid(width, height, 1, 6, 56)
    assert len(tiles) == count_tiles(width, height, **options, use_thumbnail=True)
    whole = Image.new("RGB", (56 * columns, 56 * rows))
    for number in range(columns * rows):
        whole.paste(tiles[number], (number % columns * 56, number // columns * 56))
    assert whole.tobytes() == image.resize(whole.size, Image.Resampling.BICUBIC).tobytes()
    if columns * rows > 1:
        assert tiles[-1].tobytes() == image.resize((56, 56), Image.Resampling.BICUBIC).tobytes()


def test_pixel_values_equal_torchvisions_transform():
    image = make_image(90, 70, 2)
    transform = v2.Compose(
        [
            v2.Resize((56, 56), interpolation=v2.InterpolationMode.BICUBIC),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    assert torch.allclose(to_pixel_values([image], 56)[0], transform(image), atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_every_colour_mode_is_read_as_rgb(tmp_path, mode):
    file = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    make_image(50, 40, 3).convert(mode).save(file)
    assert load_image(file, input_size=56, max_num=1).shape == (1, 3, 56, 56)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_unreadable_files_are_named(tmp_path, content):
    file = tmp_path / "a.png"
    make_image(50, 40, 3).save(file)
    file.write_bytes(file.read_bytes()[:-900] if content is None else content)
    with pytest.raises(ValueError, match=r"a\.png: cannot be read as an image"):
        open_image(file)
    with pytest.raises(FileNotFoundError, match="there is no such image"):
        open_image(tmp_path / "b.png")


def test_the_processor_tiles_as_load_image_does(tmp_path):
    image = make_image(130, 60, 4)
    processor = InternVLChatImageProcessor(image_size=56, max_dynamic_patch=6)
    features = processor([image, image.resize((56, 56))])
    assert features["num_patches_list"] == [3, 1]
    assert torch.equal(features["pixel_values"][:3], load_image(image, input_size=56, max_num=6))
    processor.save_pretrained(tmp_path)
    again = InternVLChatImageProcessor.from_pretrained(tmp_path)
    assert torch.equal(again(image)["pixel_values"], features["pixel_values"][:3])
