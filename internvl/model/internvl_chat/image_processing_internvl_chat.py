"""Images to tiles to normalised tensors: the one tiler of training, evaluation and chat.

Axis letters: T tiles of one image, S tile side in pixels.
"""

import io
import struct
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

# Channel means and standard deviations for pixels in 0..1: torchvision's ImageNet statistics (InternViT), OpenAI
# CLIP's, and SigLIP's.
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.4814546600, 0.4578275000, 0.4082107300), (0.2686295400, 0.2613025800, 0.2757771100)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
IMAGENET_MEAN, IMAGENET_STD = NORMALIZATIONS["imagenet"]
ORIENTATION_TAG = 0x0112
# An image may carry its editing history in its text: of no use here, and no reason to refuse the image.
PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, 64 << 20)
# EXIF orientation → the turn that undoes it.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PADDING_COLOR = tuple(int(255 * mean) for mean in IMAGENET_MEAN)


@lru_cache
def candidate_grids(min_num: int, max_num: int) -> tuple[tuple[int, int], ...]:
    """Return the (columns, rows) grids of ``min_num`` to ``max_num`` tiles, smallest first.

    Grids of equal area stand in the order in which CPython iterates a set of them. Published checkpoints were trained
    with that order, which decides exact ties, so the set is kept; its order does not vary between runs because
    integers hash to themselves.
    """
    grids = {
        (columns, rows)
        for num in range(min_num, max_num + 1)
        for columns in range(1, num + 1)
        for rows in range(1, num + 1)
        if min_num <= columns * rows <= max_num
    }
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def choose_grid(width: int, height: int, min_num: int, max_num: int, image_size: int) -> tuple[int, int]:
    """Return the (columns, rows) whose aspect ratio is nearest to the image's.

    Of grids equally near, a later one (with more tiles) wins if the image covers more than half of its pixels.

    Args:
        width: of the image, in px.
        height: of the image, in px.
        min_num: fewest tiles.
        max_num: most tiles.
        image_size: tile side in px.

    Example: 640 × 480 with at most 6 tiles gives (3, 2), 1.5 being nearer to 1.33 than 1 or 2 are.
    """
    best, best_distance = (1, 1), float("inf")
    for columns, rows in candidate_grids(min_num, max_num):
        distance = abs(width / height - columns / rows)
        if distance < best_distance:
            best, best_distance = (columns, rows), distance
        elif distance == best_distance and width * height > 0.5 * image_size**2 * columns * rows:
            best = (columns, rows)
    return best


def count_tiles(width: int, height: int, *, min_num: int, max_num: int, image_size: int, use_thumbnail: bool) -> int:
    """Return how many tiles :func:`split_into_tiles` makes of an image.

    Args:
        width: of the image, in px.
        height: of the image, in px.
        min_num: fewest tiles, without the thumbnail.
        max_num: most tiles, without the thumbnail.
        image_size: tile side in px.
        use_thumbnail: whether a thumbnail of the whole is one more, beside several tiles.
    """
    columns, rows = choose_grid(width, height, min_num, max_num, image_size)
    return columns * rows + (use_thumbnail and columns * rows > 1)


def split_into_tiles(
    image: Image.Image,
    *,
    min_num: int,
    max_num: int,
    image_size: int,
    use_thumbnail: bool,
    size: tuple[int, int] | None = None,
) -> list[Image.Image]:
    """Resize an image to its grid and cut it into S × S tiles, row by row; a thumbnail of the whole goes last.

    Args:
        image: RGB.
        min_num: fewest tiles, without the thumbnail.
        max_num: most tiles, without the thumbnail.
        image_size: S, in px.
        use_thumbnail: add the thumbnail; one tile gets none, since it is one.
        size: the (width, height) in px that the grid is chosen by, where an image was decoded smaller than it is.
    """
    width, height = size or image.size
    columns, rows = choose_grid(width, height, min_num, max_num, image_size)
    resized = image.resize((image_size * columns, image_size * rows), Image.Resampling.BICUBIC)
    tiles = [
        resized.crop((x, y, x + image_size, y + image_size))
        for y in range(0, image_size * rows, image_size)
        for x in range(0, image_size * columns, image_size)
    ]
    if use_thumbnail and len(tiles) > 1:
        tiles.append(image.resize((image_size, image_size), Image.Resampling.BICUBIC))
    return tiles


def expand_to_square(image: Image.Image, color: tuple[int, int, int] = PADDING_COLOR) -> Image.Image:
    """Pad the shorter side evenly, by default with the mean colour: what ``pad2square`` asks for without tiling."""
    side = max(image.size)
    square = Image.new(image.mode, (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def degrade_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Re-encode as JPEG of ``quality`` (0 to 100): the training augmentation of the published recipes."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")


def stack_tiles(tiles: Sequence[Image.Image], image_size: int) -> torch.Tensor:
    """Return tiles as one tensor of bytes, uint8 (T, 3, S, S), resizing those of another size (bicubic)."""
    size = (image_size, image_size)
    arrays = [
        np.asarray(tile if tile.size == size else tile.resize(size, Image.Resampling.BICUBIC))
        for tile in (tile.convert("RGB") for tile in tiles)
    ]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def normalize_pixels(
    pixels: torch.Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> torch.Tensor:
    """Return bytes (T, 3, S, S) as the vision encoder takes them: float32, scaled to 0..1, then normalised."""
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (mean, std))
    return pixels.float().div_(255).sub_(mean).div_(std)


def to_pixel_values(
    tiles: Sequence[Image.Image],
    image_size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> torch.Tensor:
    """Return tiles as one normalised float32 tensor (T, 3, S, S).

    Args:
        tiles: RGB; those of another size are resized (bicubic).
        image_size: S, in px.
        mean: of each channel, for values from 0 to 1.
        std: of each channel.
    """
    return normalize_pixels(stack_tiles(tiles, image_size), mean, std)


def read_orientation(image: Image.Image) -> int:
    """Return how a camera was held: the EXIF orientation, 1 to 8 (CIPA DC-008, section 4.6.5), 1 where there is none.

    Reads no further than the header; damaged EXIF counts as none, since the image itself may be whole.
    """
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # to look for it behind the pixels, Pillow would decode them
    try:
        return image.getexif().get(ORIENTATION_TAG, 1)
    except (SyntaxError, ValueError, OSError, struct.error):
        return 1


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Return greys of 16 or 32 bits, or of float, as 8 bits; Pillow's own conversion cuts off what lies above 255.

    Values are scaled by the power of two that their greatest needs, so that 16-bit photos keep their upper 8 bits,
    12-bit ones theirs, depths in millimetres or metres are seen, and floats from 0 to 1 are black to white. What is
    within 8 bits already stays as it is.

    Raises:
        ValueError: some values are negative, infinite or not a number, which no grey is.
    """
    values = np.asarray(image)
    least, greatest = (float(bound) for bound in (values.min(), values.max()))
    if not (least >= 0 and greatest < float("inf")):  # not a number fails the first comparison
        raise ValueError(f"its greys are from {least:g} to {greatest:g}; save them as 0 and above, finite")
    if values.dtype.kind == "f":
        bits = int(np.ceil(np.log2(greatest))) if greatest > 0 else 0
        scaled = values if 128 < greatest <= 255 else np.minimum(values * (255 / 2.0**bits), 255)
    else:
        scaled = values >> max(0, int(greatest).bit_length() - 8)
    return Image.fromarray(scaled.astype(np.uint8))


def to_upright_rgb(image: Image.Image, *, least_size: tuple[int, int] | None = None) -> Image.Image:
    """Return an image as RGB, turned the way its camera was held.

    With ``least_size``, (width, height) in px, a JPEG that was not decoded yet may come at a half, a quarter or an
    eighth of its size if that is no less: its decoder leaves the finest frequencies out, several times faster.
    Greys of more than 8 bits are scaled (:func:`to_eight_bits`), and alpha is dropped, as in the original.

    Raises:
        ValueError: greys with negative or infinite values.
    """
    orientation = read_orientation(image)
    if least_size is not None and image.format == "JPEG":
        image.draft("RGB", least_size if orientation < 5 else least_size[::-1])
    if image.mode == "F" or image.mode.startswith("I"):
        image = to_eight_bits(image)
    image = image.convert("RGB")
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def open_image(source: str | Path | io.IOBase | Image.Image) -> Image.Image:
    """Read an image completely, as RGB, upright.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an image, or is cut off.
    """
    if isinstance(source, Image.Image):
        return to_upright_rgb(source)
    try:
        with Image.open(source) as image:
            return to_upright_rgb(image)
    except FileNotFoundError as err:
        raise FileNotFoundError(f"{source}: there is no such image. Check the path and the data set's root.") from err
    except Exception as err:
        # Pillow's decoders raise what a damaged file makes them stumble over: OSError, SyntaxError, struct.error, …
        raise ValueError(f"{source}: cannot be read as an image ({err}). Replace the file or remove its row.") from err


def load_image(
    image_file: str | Path | io.IOBase | Image.Image,
    input_size: int = 448,
    max_num: int = 12,
    min_num: int = 1,
    use_thumbnail: bool = True,
) -> torch.Tensor:
    """Return the tiles of one image as ``pixel_values``, float32 (T, 3, S, S), for ``model.chat``.

    Args:
        image_file: a path, an open file, or an image in memory.
        input_size: S, in px.
        max_num: most tiles, without the thumbnail.
        min_num: fewest tiles.
        use_thumbnail: whether several tiles get a thumbnail of the whole beside them.

    Raises:
        ValueError: it cannot be read as an image.
    """
    tiles = split_into_tiles(
        open_image(image_file),
        min_num=min_num,
        max_num=max_num,
        image_size=input_size,
        use_thumbnail=use_thumbnail,
    )
    return to_pixel_values(tiles, input_size)


class InternVLChatImageProcessor(BaseImageProcessor):
    """The tiler with a checkpoint's settings: what ``AutoImageProcessor`` returns for it."""

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        image_size: int = 448,
        min_dynamic_patch: int = 1,
        max_dynamic_patch: int = 12,
        dynamic_image_size: bool = True,
        use_thumbnail: bool = True,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.image_size = image_size
        self.min_dynamic_patch = min_dynamic_patch
        self.max_dynamic_patch = max_dynamic_patch
        self.dynamic_image_size = dynamic_image_size
        self.use_thumbnail = use_thumbnail
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def preprocess(self, images, max_dynamic_patch: int | None = None, **kwargs) -> BatchFeature:
        """Turn one image or a list (paths or PIL images) into tiles.

        Returns ``pixel_values``, float32 (T, 3, S, S) with the tiles of all images in order, and
        ``num_patches_list``, the tiles of each.
        """
        images = images if isinstance(images, (list, tuple)) else [images]
        limit = (max_dynamic_patch or self.max_dynamic_patch) if self.dynamic_image_size else 1
        tiles = [
            split_into_tiles(
                open_image(image),
                min_num=min(self.min_dynamic_patch, limit),
                max_num=limit,
                image_size=self.image_size,
                use_thumbnail=self.use_thumbnail,
            )
            for image in images
        ]
        flat = [tile for group in tiles for tile in group]
        pixel_values = to_pixel_values(flat, self.image_size, self.image_mean, self.image_std)
        return BatchFeature({"pixel_values": pixel_values, "num_patches_list": [len(group) for group in tiles]})

    def __call__(self, images, **kwargs) -> BatchFeature:
        return self.preprocess(images, **kwargs)
