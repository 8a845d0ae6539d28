"""Caption every picture of a set: batched, sorted by size, split over processes."""

from pathlib import Path

import torch
from torch import distributed
from tqdm import tqdm

from internvl.evaluation.datasets import CaptionSet
from internvl.inference.engine import Engine, Request


def process_share(total: int, rank: int, world_size: int) -> range:
    """Return the contiguous indices of one process; the first ``total % world_size`` processes get one more."""
    size, extra = divmod(total, world_size)
    start = rank * size + min(rank, extra)
    return range(start, start + size + (rank < extra))


def generate_captions(engine: Engine, data: CaptionSet, *, batch_size: int, **generation) -> list[dict]:
    """Return ``{"image_id", "caption"}`` of every picture, in the order of the set.

    Each process answers its share; all return the whole list. A batch holds up to ``batch_size`` pictures of about the
    same number of tiles, so that little is padded.
    """
    world = distributed.get_world_size() if distributed.is_initialized() else 1
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    mine = [data.images[index] for index in process_share(len(data.images), rank, world)]
    captions = caption_pictures(engine, mine, data.prompt, batch_size, show_progress=rank == 0, **generation)
    if world > 1:
        shares: list[dict | None] = [None] * world
        distributed.all_gather_object(shares, captions)
        captions = {image_id: caption for share in shares for image_id, caption in (share or {}).items()}
    return [{"image_id": image_id, "caption": captions[image_id]} for image_id, _ in data.images]


def caption_pictures(
    engine: Engine,
    images: list[tuple[int, Path]],
    prompt: str,
    batch_size: int,
    *,
    show_progress: bool,
    **generation,
) -> dict[int, str]:
    """Answer ``prompt`` for each (id, path)."""
    captions = {}
    pending: dict[int, list[tuple[int, torch.Tensor]]] = {}  # by number of tiles
    bar = tqdm(total=len(images), desc="Captioning", unit=" pictures", disable=not show_progress, dynamic_ncols=True)

    def answer(group: list[tuple[int, torch.Tensor]]) -> None:
        requests = [Request([tiles], prompt) for _, tiles in group]
        for (image_id, _), text in zip(group, engine.answer(requests, **generation), strict=True):
            captions[image_id] = text
        bar.update(len(group))

    for image_id, path in images:
        tiles = engine.tiles(path)
        group = pending.setdefault(len(tiles), [])
        group.append((image_id, tiles))
        if len(group) == batch_size:
            answer(pending.pop(len(tiles)))
    for group in pending.values():
        answer(group)
    bar.close()
    return captions
