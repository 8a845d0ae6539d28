"""The one image path: a file becomes tiles, or the features a cache has of them, alike in training and inference.

Axis letters: T tiles, S tile side in pixels.
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from internvl.data.media import read, read_image, read_image_size
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.image_processing_internvl_chat import (
    choose_grid,
    count_tiles,
    degrade_jpeg,
    expand_to_square,
    split_into_tiles,
    stack_tiles,
)
from internvl.model.vision_cache import TiledImage, VisionCache

# The published augmentation: JPEG qualities drawn uniformly from these.
JPEG_QUALITIES = range(75, 101)


@dataclass(frozen=True)
class TilingConfig:
    """How images are tiled: into at most ``max_num`` tiles of ``image_size`` px a side, and a thumbnail.

    Without ``dynamic`` every image is one tile, padded to a square where ``pad2square`` says so, as in the original.
    """

    image_size: int
    dynamic: bool = True
    use_thumbnail: bool = True
    min_num: int = 1
    max_num: int = 6
    pad2square: bool = False

    @classmethod
    def of(cls, config: InternVLChatConfig, max_tiles: int) -> "TilingConfig":
        """Return a checkpoint's tiling with at most ``max_tiles`` tiles an image; 1 for no tiling."""
        return cls(
            image_size=config.image_size,
            dynamic=max_tiles > 1,
            use_thumbnail=config.use_thumbnail,
            min_num=config.min_dynamic_patch,
            max_num=max_tiles,
            pad2square=config.pad2square,
        )

    @property
    def pads_to_square(self) -> bool:
        """Whether images are padded: as in the original, only those that are not tiled."""
        return self.pad2square and not self.dynamic

    def limit(self, num_images: int, max_num: int | None = None) -> int:
        """Return the most tiles of one image of a conversation, whose images share the limit, as in the original.

        ``max_num`` is a data set's own limit.
        """
        return max(1, (max_num or self.max_num) // max(1, num_images)) if self.dynamic else 1

    def arguments(self, limit: int) -> dict:
        """Return the keyword arguments of ``split_into_tiles`` for an image of at most ``limit`` tiles."""
        return {
            "min_num": min(self.min_num, limit),
            "max_num": limit,
            "image_size": self.image_size,
            "use_thumbnail": self.use_thumbnail and limit > 1,  # one tile gets none: it is one
        }

    def grid(self, size: tuple[int, int], limit: int) -> tuple[int, int]:
        """Return (columns, rows) of an image of (width, height) px that has at most ``limit`` tiles."""
        return choose_grid(*size, min(self.min_num, limit), limit, self.image_size)

    def num_tiles(self, size: tuple[int, int], limit: int | None = None) -> int:
        """Return how many tiles an image of (width, height) px has, ``limit`` or ``max_num`` at most."""
        return count_tiles(*size, **self.arguments(limit or self.limit(1)))


class ImageReader:
    """Reads images as tiles; where ``cache`` has an image's features, it is not even decoded.

    With ``draft_decoding``, JPEGs are decoded at a half, a quarter or an eighth of their size where their tiles need
    no more, which changes pixels a little.
    """

    def __init__(self, tiling: TilingConfig, *, cache: VisionCache | None = None, draft_decoding: bool = False):
        self.tiling = tiling
        self.cache = cache
        self.draft_decoding = draft_decoding and not tiling.pads_to_square

    def read(self, path: Path, limit: int, where: str, rng: random.Random | None = None) -> TiledImage:
        """Return an image of at most ``limit`` tiles.

        Args:
            path: its file.
            limit: most tiles, without the thumbnail.
            where: file and line of the row it belongs to, for messages.
            rng: augments it, by drawing the quality of its JPEG encoding; such an image is not cached.

        Raises:
            RowError: the file is missing, or is not an image that can be read.
        """
        key = None
        if self.cache is not None and rng is None:
            settings = self.key_settings(read_image_size(path, where), limit)
            key = self.cache.key(read(Path.read_bytes, path, "image", where), settings)
            features = self.cache.load(key)
            if features is not None:
                return TiledImage(features=features, key=key)
        size = least_size = None
        if self.draft_decoding:
            size = read_image_size(path, where)
            grid = self.tiling.grid(size, limit)
            least_size = (grid[0] * self.tiling.image_size, grid[1] * self.tiling.image_size)
        image = read_image(path, where, least_size=least_size)
        return replace(self.tile(image, limit, rng, size), key=key)

    def tile(
        self,
        image: Image.Image,
        limit: int,
        rng: random.Random | None = None,
        size: tuple[int, int] | None = None,
    ) -> TiledImage:
        """Return a decoded image's tiles, uint8 (T, 3, S, S).

        Args:
            image: the image, as RGB.
            limit: most tiles, without the thumbnail.
            rng: augments it; as in the original, such an image is not padded.
            size: its (width, height) in px if it was decoded smaller than it is.
        """
        if self.tiling.pads_to_square and rng is None:
            image, size = expand_to_square(image), None
        tiles = split_into_tiles(image, **self.tiling.arguments(limit), size=size)
        if rng is not None:
            tiles = [degrade_jpeg(tile, rng.choice(JPEG_QUALITIES)) for tile in tiles]
        return TiledImage(tiles=stack_tiles(tiles, self.tiling.image_size))

    def key_settings(self, size: tuple[int, int], limit: int) -> dict:
        """Return what decides an image's features beside its file's content, for its name in the cache.

        The grid and not the limit: a frame has one name in a row of its own and in a history of eight.
        """
        settings = {
            "image_size": self.tiling.image_size,
            "grid": self.tiling.grid(size, limit),
            "use_thumbnail": self.tiling.arguments(limit)["use_thumbnail"] and self.tiling.num_tiles(size, limit) > 1,
            "square": self.tiling.pads_to_square,
        }
        # Images decoded whole have one name in training and inference.
        return settings | ({"draft": True} if self.draft_decoding else {})
