"""Writing the data set: images, training rows, the validation set's COCO captions and the ground truth."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from .captions import CAPTION_PROMPT, habitat_captions, pretrain_turns
from .rooms import Piece, sample_scene

Result = TypeVar("Result")
STYLES = ("habitat", "pretrain")
JPEG_QUALITY = 85
# Scene seeds of the three uses never meet, so no validation view is ever trained on.
SEED_OFFSETS = {"train": 0, "val": 10_000_000, "pretrain": 20_000_000}
SEEDS_PER_USE = 10_000_000
SEEDS_PER_RUN = 100_000_000  # distance between the scene seeds of two --seed values
CAPTION_STREAM = 1  # keeps the random choice of words apart from that of the scene


@dataclass(frozen=True)
class Job:
    """One image to render: where it goes and which scene it shows."""

    image_id: int
    file_name: str  # relative to the data set's folder
    scene_seed: int


@dataclass(frozen=True)
class View:
    """What the annotation files need to know about a rendered image."""

    image_id: int
    file_name: str
    pieces: tuple[Piece, ...]
    conversations: list[list[tuple[str, str]]]  # one list of (question, answer) turns per training row


def scene_seed(use: str, index: int, seed: int) -> int:
    """The seed of the ``index``-th scene (from 0) of a use, in the run with the given ``seed``."""
    if not 0 <= index < SEEDS_PER_USE:
        raise ValueError(f"image index {index} is outside the {SEEDS_PER_USE} seeds of {use!r}")
    return seed * SEEDS_PER_RUN + SEED_OFFSETS[use] + index


def jobs(split: str, count: int, use: str, seed: int) -> list[Job]:
    """The images of one split, numbered from 1."""
    return [
        Job(number, f"images/{split}/habitat_{split}_{number:012d}.jpg", scene_seed(use, number - 1, seed))
        for number in range(1, count + 1)
    ]


def render_view(job: Job, out: Path, style: str, size: int) -> View:
    """Render one image into the data set's folder and put it into words."""
    scene = sample_scene(job.scene_seed)
    scene.image(size).save(out / job.file_name, quality=JPEG_QUALITY, optimize=True)
    rng = np.random.default_rng(np.random.SeedSequence([job.scene_seed, CAPTION_STREAM]))
    if style == "habitat":
        conversations = [[(CAPTION_PROMPT, caption)] for caption in habitat_captions(scene, rng)]
    else:
        conversations = [pretrain_turns(scene, rng)]
    return View(job.image_id, job.file_name, scene.pieces, conversations)


def render_views(todo: list[Job], out: Path, style: str, size: int, workers: int) -> list[View]:
    """Render all images of a split, in order, with a progress bar."""
    for folder in {(out / job.file_name).parent for job in todo}:
        folder.mkdir(parents=True, exist_ok=True)
    work = partial(render_view, out=out, style=style, size=size)
    return map_in_processes(work, todo, workers, chunksize=8, desc="rendering", unit="image")


def map_in_processes(
    work: Callable[[Any], Result], todo: Sequence, workers: int, *, chunksize: int, **progress: str
) -> list[Result]:
    """Return what ``work`` makes of each of ``todo``, in order; ``progress`` is what the bar says.

    Args:
        work: can be pickled where there are several workers.
        todo: its arguments.
        workers: processes; 1 for this one.
        chunksize: how many a process takes at once.
        progress: ``desc`` and ``unit`` of tqdm.
    """
    bar = partial(tqdm, total=len(todo), **progress)
    if workers <= 1:
        return list(bar(map(work, todo)))
    with get_context("spawn").Pool(workers) as pool:
        return list(bar(pool.imap(work, todo, chunksize=chunksize)))


def training_rows(views: list[View], size: int) -> Iterator[dict]:
    """One row per conversation; its first question starts with the image token."""
    row_id = 0
    for view in views:
        for turns in view.conversations:
            messages = []
            for number, (question, answer) in enumerate(turns):
                value = f"<image>\n{question}" if number == 0 else question
                messages += [{"from": "human", "value": value}, {"from": "gpt", "value": answer}]
            image = {"image": view.file_name, "width": size, "height": size}
            yield {"id": row_id, **image, "conversations": messages}
            row_id += 1


def coco_captions(views: list[View], size: int) -> dict:
    """The captions in the COCO annotation format that caption metrics read."""
    images = [
        {"id": view.image_id, "file_name": Path(view.file_name).name, "width": size, "height": size} for view in views
    ]
    captions = [(view.image_id, turns[0][1]) for view in views for turns in view.conversations]
    annotations = [
        {"id": number, "image_id": image_id, "caption": caption}
        for number, (image_id, caption) in enumerate(captions, start=1)
    ]
    info = {"description": "Rendered first-person indoor views with five captions each"}
    return {"info": info, "licenses": [], "images": images, "annotations": annotations}


def scene_records(views: list[View]) -> dict[str, list[dict]]:
    """Per image id all pieces: the mentioned ones from left to right, then the others."""
    return {
        str(view.image_id): [
            {
                "kind": piece.kind,
                "colour": piece.colour,
                "side": piece.side,
                "visible_share": round(piece.visible_share, 4),
                "mentioned": piece.mentioned,
            }
            for piece in sorted(view.pieces, key=lambda piece: not piece.mentioned)
        ]
        for view in views
    }


def _write_json(path: Path, content) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_rows(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_dataset(
    out: Path, style: str, num_train: int, num_val: int = 0, seed: int = 0, size: int = 256, workers: int = 1
) -> None:
    """Write a data set; the same arguments give the same bytes whatever the number of ``workers``.

    Style "habitat" writes a training and a validation split with five captions per image; style
    "pretrain" a training split only, with one conversation of several turns per image.
    """
    use = "train" if style == "habitat" else "pretrain"
    train = render_views(jobs("train", num_train, use, seed), out, style, size, workers)
    _write_rows(out / "train.jsonl", training_rows(train, size))
    scenes = {"train": scene_records(train)}
    if style == "habitat":
        val = render_views(jobs("val", num_val, "val", seed), out, style, size, workers)
        _write_rows(out / "val.jsonl", training_rows(val, size))
        _write_json(out / "val.json", [{"image": view.file_name} for view in val])
        _write_json(out / "val_gt.json", coco_captions(val, size))
        scenes["val"] = scene_records(val)
    _write_json(out / "scenes.json", scenes)
