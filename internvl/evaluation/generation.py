"""Caption every picture of a set: batched, sorted by size, split over processes, kept on disk as it goes."""

from pathlib import Path

import torch
from torch import distributed
from tqdm import tqdm

from internvl.errors import UserError
from internvl.evaluation.answers import AnswerLog
from internvl.evaluation.datasets import CaptionSet
from internvl.inference.engine import Engine, Request

Pending = list[tuple[int, torch.Tensor]]  # image id, pixel values of its tiles


def process_share(total: int, rank: int, world_size: int) -> range:
    """Return the contiguous indices of one process; the first ``total % world_size`` processes get one more."""
    size, extra = divmod(total, world_size)
    start = rank * size + min(rank, extra)
    return range(start, start + size + (rank < extra))


def generate_captions(
    engine: Engine, data: CaptionSet, log: AnswerLog, *, batch_size: int, **generation
) -> list[dict]:
    """Return ``{"image_id", "caption"}`` of every picture, in the order of the set.

    Each process answers those of its share that are not in ``log`` yet; all return the whole list. A batch holds up to
    ``batch_size`` pictures of the same number of tiles, so that little is padded.
    """
    world = distributed.get_world_size() if distributed.is_initialized() else 1
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    mine = [data.images[index] for index in process_share(len(data.images), rank, world)]
    left = [(image_id, path) for image_id, path in mine if image_id not in log.done]
    bar = tqdm(
        total=len(mine),
        initial=len(mine) - len(left),
        desc="Captioning",
        unit=" pictures",
        disable=rank > 0,
        dynamic_ncols=True,
    )
    with bar:
        caption_pictures(engine, left, data.prompt, log, bar, batch_size=batch_size, **generation)
    captions = {image_id: log.done[image_id] for image_id, _ in mine}
    if world > 1:
        shares: list[dict | None] = [None] * world
        distributed.all_gather_object(shares, captions)
        captions = {image_id: caption for share in shares for image_id, caption in (share or {}).items()}
    return [{"image_id": image_id, "caption": captions[image_id]} for image_id, _ in data.images]


def caption_pictures(
    engine: Engine,
    images: list[tuple[int, Path]],
    prompt: str,
    log: AnswerLog,
    bar: tqdm,
    *,
    batch_size: int,
    **generation,
) -> None:
    """Answer ``prompt`` for each (id, path) into ``log``."""
    pending: dict[int, Pending] = {}  # by number of tiles

    def answer(group: Pending) -> None:
        log.add(answer_group(engine, group, prompt, **generation))
        bar.update(len(group))

    for image_id, path in images:
        tiles = engine.tiles(path)
        group = pending.setdefault(len(tiles), [])
        group.append((image_id, tiles))
        if len(group) == batch_size:
            answer(pending.pop(len(tiles)))
    for group in pending.values():
        answer(group)


def answer_group(engine: Engine, group: Pending, prompt: str, **generation) -> dict[int, str]:
    """Answer ``prompt`` for pictures of a batch; one that does not fit into memory is halved.

    Raises:
        UserError: a single picture does not fit.
    """
    try:
        texts = engine.answer([Request([tiles], prompt) for _, tiles in group], **generation)
    except torch.OutOfMemoryError as err:
        if len(group) == 1:
            raise UserError(
                f"--max-num: one picture of {len(group[0][1])} tiles does not fit into the device's memory. Lower it "
                "or --num-beams."
            ) from err
    else:
        return {image_id: text for (image_id, _), text in zip(group, texts, strict=True)}
    # Outside the handler: until it ends, the error holds on to the memory that is to be freed.
    torch.cuda.empty_cache()
    half = len(group) // 2
    first, second = (answer_group(engine, part, prompt, **generation) for part in (group[:half], group[half:]))
    return first | second
