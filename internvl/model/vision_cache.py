"""Images on their way to the model, and a folder that keeps their features: the encoder sees an image once.

Axis letters: T tiles of one image, P image tokens a tile, C language model channels, S tile side in px.
"""

import fcntl
import hashlib
import logging
import os
import tempfile
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from internvl.errors import UserError
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel

logger = logging.getLogger(__name__)
CHECKSUM_BYTES = 4
# By default: 7 tiles of InternVL2-2B are 7.3 MB, so this holds some 7,000 images.
VISION_CACHE_GB = 50.0
LEDGER = "bytes_used"


@dataclass
class TiledImage:
    """One image: its ``tiles``, uint8 (T, 3, S, S), or its ``features``, (T, P, C), when they were kept.

    ``key`` names it in the cache; None where it is not to be kept (a frame of a video, an augmented image).
    """

    tiles: torch.Tensor | None = None
    features: torch.Tensor | None = None
    key: str | None = None

    def __len__(self) -> int:
        """Return the number of tiles."""
        known = self.tiles if self.features is None else self.features
        return 0 if known is None else len(known)


class VisionCache:
    """Features of images on disk, bfloat16, one memory-mapped file an image.

    An image is found by the hash of its file, of how it is cut into tiles, and of the encoder's and the projector's
    weights and dtype: other weights never find it. Files are written beside and renamed and carry a checksum, so
    several processes may share a folder, and a damaged file is computed anew. ``max_bytes`` bounds what all
    processes together write to ``folder``; when it is full, what is there stays and nothing is added, because an
    epoch that goes round a cache too small would find nothing in one that forgets.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, model: InternVLChatModel, *, max_bytes: int):
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.shape = (model.num_image_token, model.config.llm_config.hidden_size)
        self.fingerprint = fingerprint(model)
        self.full = False
        try:
            (self.folder / self.fingerprint).mkdir(parents=True, exist_ok=True)
            self._account(None)
        except OSError as err:
            raise UserError(f"--vision_cache: {folder} cannot be written ({err}). Name another folder.") from err

    def key(self, content: bytes, tiling: dict) -> str:
        """Return the name of an image, given its file's ``content`` and how it is cut into tiles."""
        return hashlib.sha256(repr(sorted(tiling.items())).encode() + hashlib.sha256(content).digest()).hexdigest()

    def path(self, key: str) -> Path:
        return self.folder / self.fingerprint / key[:2] / key

    def load(self, key: str) -> torch.Tensor | None:
        """Return an image's features, bfloat16 (T, P, C), or None."""
        path = self.path(key)
        try:
            stored = np.memmap(path, dtype=np.uint8, mode="c")
        except (FileNotFoundError, ValueError):  # ValueError: the file is empty
            return None
        content, checksum = stored[:-CHECKSUM_BYTES], stored[-CHECKSUM_BYTES:].tobytes()
        whole = len(content) % (2 * self.shape[0] * self.shape[1]) == 0
        if not whole or not len(content) or zlib.crc32(content.data).to_bytes(CHECKSUM_BYTES, "little") != checksum:
            logger.warning("%s: is damaged and will be computed anew.", path)
            path.unlink(missing_ok=True)
            return None
        return torch.from_numpy(content).view(torch.bfloat16).view(-1, *self.shape)

    def save(self, key: str, features: torch.Tensor) -> None:
        """Keep an image's features (T, P, C), unless the cache is full."""
        path = self.path(key)
        content = features.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy()
        if self.full or path.exists():
            return
        if not self._account(content.nbytes + CHECKSUM_BYTES):
            self.full = True
            logger.info(
                "The vision cache %s is full (--vision_cache_gb): further images are encoded each time.", self.folder
            )
            return
        path.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            file.write(content)
            file.write(zlib.crc32(content).to_bytes(CHECKSUM_BYTES, "little"))
        os.replace(file.name, path)

    def _account(self, num_bytes: int | None) -> bool:
        """Take ``num_bytes`` from what is left for all processes; False if there is not as much. None: count anew."""
        with open(self.folder / LEDGER, "a+", encoding="ascii") as ledger:
            fcntl.flock(ledger, fcntl.LOCK_EX)
            ledger.seek(0)
            if num_bytes is None:
                used = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
            else:
                used = int(ledger.read() or 0) + num_bytes
            if num_bytes is not None and used > self.max_bytes:
                return False
            ledger.truncate(0)
            ledger.write(str(used))
            return True


def fingerprint(model: InternVLChatModel) -> str:
    """Return the hash of all that decides a tile's features: weights, their dtype, and how they are combined."""
    config = model.config
    settings = (config.select_layer, config.ps_version, config.downsample_ratio, config.image_size)
    digest = hashlib.sha256(repr(settings).encode())
    for part in (model.vision_model, model.mlp1):
        for name, tensor in part.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


@torch.no_grad()
def image_features(
    model: InternVLChatModel, images: Sequence[TiledImage], cache: VisionCache | None = None
) -> torch.Tensor | None:
    """Return the features of all tiles of ``images`` in order, (tiles, P, C) on the model's device; None of none.

    Those not known are computed in one call, an image that occurs more than once only once. With a cache they are
    rounded to bfloat16, as they are kept, so that it makes no difference whether an image was found there.
    """
    if not images:
        return None
    missing = {image.key or id(image): image for image in images if image.features is None}
    computed: dict[str | int, torch.Tensor] = {}
    if missing:
        tiles = torch.cat([image.tiles for image in missing.values()]).to(model.device)
        # What is kept is computed the same way in training and evaluation: without mixed precision.
        with torch.autocast(model.device.type, enabled=False) if cache is not None else nullcontext():
            features = model.extract_feature(tiles)
        if cache is not None:
            features = features.bfloat16()
        counts = [len(image) for image in missing.values()]
        computed = dict(zip(missing, features.split(counts), strict=True))
        for key, image in missing.items():
            if cache is not None and image.key:
                cache.save(image.key, computed[key])
    return torch.cat(
        [
            computed[image.key or id(image)]
            if image.features is None
            else image.features.to(model.device, non_blocking=True)
            for image in images
        ]
    )
