"""Grids, tiles and normalised images."""

import re
from pathlib import Path

import torch

from internvl.model.internvl_chat.image_processing_internvl_chat import (
    NORMALIZATIONS,
    choose_grid,
    count_tiles,
    degrade_jpeg,
    expand_to_square,
    open_image,
    split_into_tiles,
    to_pixel_values,
)
from tests.reference.golden import compare_pixels, make_image, read_json, sha256
from tests.reference.runner import Report


def run(report: Report, folder: Path) -> None:
    """Check ``tiling/grids.json`` and ``tiling/images.json``."""
    grids, images = folder / "tiling" / "grids.json", folder / "tiling" / "images.json"
    if grids.is_file():
        check_grids(report, read_json(grids))
    if images.is_file():
        content = read_json(images)
        for record in content["images"]:
            name = f"{record['width']}x{record['height']} k={record['k']}"
            with report.guard(name):
                check_image(report, name, record)
        for record in content.get("modes", []):
            name = f"mode {record['mode']}"
            with report.guard(name):
                image = converted(record)
                compare_pixels(report, name, to_pixel_values([open_image(image)], record["input_size"])[0], record)
        for record in content.get("modes_dynamic", []):
            name = f"mode {record['mode']}, RGB {'before' if record['converted_to_rgb_before_tiling'] else 'after'}"
            with report.guard(name):
                check_mode_with_tiles(report, f"{name} tiling", record, content["modes_dynamic"])


def check_grids(report: Report, content: dict) -> None:
    for row in content["rows"]:
        values = dict(zip(content["columns"], row, strict=True))
        limits = {key: values[key] for key in ("min_num", "max_num", "image_size")}
        size = (values["width"], values["height"])
        number = count_tiles(*size, **limits, use_thumbnail=values["use_thumbnail"])
        got = [*choose_grid(*size, **limits), number]
        name = f"grid {size[0]}x{size[1]} {limits['min_num']}-{limits['max_num']}"
        report.equal(name, got, [values["grid_cols"], values["grid_rows"], values["num_tiles"]])


def check_image(report: Report, name: str, record: dict) -> None:
    """Compare one image's tiles, and the image itself through each transform."""
    image = make_image(record["width"], record["height"], record["k"])
    report.equal(f"{name}/formula", sha256(image), record["image_sha256"])
    keys = ("min_num", "max_num", "image_size", "use_thumbnail")
    tiles = split_into_tiles(image, **{key: record[key] for key in keys})
    report.equal(f"{name}/tile_sizes", [list(tile.size) for tile in tiles], record["tile_sizes"])
    if [sha256(tile) for tile in tiles] == record["tile_sha256"]:
        report.within(f"{name}/tiles", 0.0, 0.0)
    else:  # another Pillow: means in grey levels
        means = to_pixel_values(tiles, record["image_size"], (0, 0, 0), (1, 1, 1)).mul(255).mean(dim=(2, 3))
        report.close(f"{name}/tiles", means, torch.tensor(record["tile_mean_u8"]), 2e-3 * 255)
    squared = record.get("expand2square")
    square = expand_to_square(image, tuple(squared["fill"])) if squared else None
    if squared:
        report.equal(f"{name}/expand2square", [*square.size, sha256(square)], [*squared["size"], squared["sha256"]])
    for key, digest in record.items():
        if not key.startswith("transform_"):
            continue
        kind = next((kind for kind in NORMALIZATIONS if kind in key), "imagenet")
        source = square if "pad2square" in key else tiles[-1] if "last_tile" in key else image
        pixels = to_pixel_values([source], digest["shape"][-1], *NORMALIZATIONS[kind])
        compare_pixels(report, f"{name}/{key}", pixels[0], digest)
    for key, digest in record.get("train", {}).items():
        pixels = to_pixel_values([degrade_jpeg(image, digest["jpeg_quality_drawn"])], digest["shape"][-1])
        compare_pixels(report, f"{name}/train {key}", pixels[0], digest, jpeg=True)


def converted(record: dict):
    """Make the image of a source like ``image(61,47,k=3).convert(mode)``."""
    width, height, k = map(int, re.search(r"image\((\d+),(\d+),k=(\d+)\)", record["source"]).groups())
    return make_image(width, height, k).convert(record["mode"])


def check_mode_with_tiles(report: Report, name: str, record: dict, records: list[dict]) -> None:
    """Images of other colour modes are RGB before they are tiled, wherever the original converted them."""
    image = open_image(converted(record))
    limits = {"min_num": 1, "image_size": record["image_size"], "use_thumbnail": True}
    # The limit is not recorded: take the lowest that gives this number of tiles.
    limits["max_num"] = next(
        number for number in range(1, 100) if count_tiles(*image.size, **limits, max_num=number) == record["num_tiles"]
    )
    pixels = to_pixel_values(split_into_tiles(image, **limits), record["image_size"])
    keys = ("mode", "source", "image_size")
    early = next(
        (
            other
            for other in records
            if other["converted_to_rgb_before_tiling"] and all(other[key] == record[key] for key in keys)
        ),
        record,
    )
    if early["sha256_f32"] == record["sha256_f32"]:
        compare_pixels(report, name, pixels, record)
    else:
        report.differs(name, "RGB first", sha256(pixels) == early["sha256_f32"], "not the tiles of an RGB image")
