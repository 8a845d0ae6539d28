"""Features kept on disk: found again, never of other weights, bounded, and safe for several processes."""

import multiprocessing

import pytest
import torch

from internvl.errors import UserError
from internvl.model.loading import load_model
from internvl.model.vision_cache import CHECKSUM_BYTES, LEDGER, TiledImage, VisionCache, image_features

BYTES = 2 * 4 * 64 * 2  # 2 tiles of 4 tokens of 64 channels
TILING = {"max_num": 6, "image_size": 56}


@pytest.fixture
def cache(tmp_path, tiny_model):
    return VisionCache(tmp_path / "cache", tiny_model.model, max_bytes=10**6)


def features(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(seed)).bfloat16()


def test_features_are_found_by_content_and_tiling(cache):
    key = cache.key(b"image", TILING)
    assert cache.load(key) is None
    cache.save(key, features())
    assert torch.equal(cache.load(key), features())
    assert len({key, cache.key(b"another", TILING), cache.key(b"image", {**TILING, "max_num": 1})}) == 3


def test_other_weights_never_find_them(cache, tiny_base):
    key = cache.key(b"image", TILING)
    cache.save(key, features())
    model = load_model(tiny_base).model
    assert VisionCache(cache.folder, model, max_bytes=10**6).load(key) is not None
    with torch.no_grad():
        model.mlp1[1].bias[0] += 1e-3
    assert VisionCache(cache.folder, model, max_bytes=10**6).load(key) is None
    half = load_model(tiny_base, dtype=torch.bfloat16).model
    assert VisionCache(cache.folder, half, max_bytes=10**6).load(key) is None


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
def test_a_damaged_file_is_computed_anew(cache, damage):
    key = cache.key(b"image", TILING)
    cache.save(key, features())
    content = bytearray(cache.path(key).read_bytes())
    content[100] ^= 1
    cache.path(key).write_bytes({"cut": content[:-64], "empty": b"", "flipped": content}[damage])
    assert cache.load(key) is None
    cache.path(key).unlink(missing_ok=True)
    cache.save(key, features())
    assert torch.equal(cache.load(key), features())


def write(cache: VisionCache, first: int) -> None:
    for number in range(40):
        cache.save(cache.key(str((first + number) % 60).encode(), TILING), features((first + number) % 60))


def test_several_processes_keep_within_the_bound_and_read_each_other(cache):
    cache.max_bytes = 50 * (BYTES + CHECKSUM_BYTES) + 100
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write, args=(cache, start)) for start in (0, 20)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    files = [file for file in cache.folder.rglob("*") if file.is_file() and file.name != LEDGER]
    assert 30 <= len(files) <= 50 and not [file for file in files if file.suffix]
    assert sum(file.stat().st_size for file in files) <= cache.max_bytes
    for number in range(60):
        kept = cache.load(cache.key(str(number).encode(), TILING))
        assert kept is None or torch.equal(kept, features(number))


def test_an_image_that_occurs_twice_is_encoded_once(cache, tiny_model, monkeypatch):
    model, calls = tiny_model.model, []
    extract = model.extract_feature
    monkeypatch.setattr(model, "extract_feature", lambda tiles: calls.append(len(tiles)) or extract(tiles))
    tiles = [torch.randint(0, 255, (count, 3, 56, 56), dtype=torch.uint8) for count in (2, 1)]
    images = [
        TiledImage(tiles[0], key="a"),
        TiledImage(tiles[1]),
        TiledImage(tiles[0], key="a"),
        TiledImage(features=features()),
    ]
    got = image_features(model, images)
    assert calls == [3] and got.shape == (7, 4, 64)
    with torch.no_grad():
        assert torch.allclose(got[:3], extract(torch.cat(tiles)), atol=1e-6) and torch.equal(got[3:5], got[:2])
    assert image_features(model, []) is None


def test_a_folder_that_cannot_be_written_is_named(tmp_path, tiny_model):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="--vision_cache: .*file.* cannot be written"):
        VisionCache(tmp_path / "file", tiny_model.model, max_bytes=1)
