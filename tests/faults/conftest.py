"""A data set and checkpoints to damage, in a folder of their own."""

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.conftest import make_image
from tests.faults.runs import runs, train  # noqa: F401 - fixtures


class Sandbox(NamedTuple):
    """Where a reader is tried: ``inputs`` is read, ``out`` written to."""

    inputs: Path
    out: Path


@pytest.fixture(scope="session")
def film_bytes(tmp_path_factory) -> bytes:
    """A video of twelve frames."""
    import av
    import numpy as np

    file = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.read_bytes()


@pytest.fixture
def sandbox(tmp_path, film_bytes, monkeypatch) -> Sandbox:
    """A root with good images, a video and frames, and with links, a loop and a pipe: the working directory."""
    root = tmp_path / "inputs"
    for folder in ("images", "film", "pipes"):
        (root / folder).mkdir(parents=True)
    (tmp_path / "out").mkdir()
    make_image(60, 40, 1).save(root / "good.png")
    make_image(60, 40, 2).save(tmp_path / "outside.png")
    for number in range(4):
        make_image(60, 60, number).save(root / "film" / f"{number}.png")
    (root / "film.mp4").write_bytes(film_bytes)
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "linked").symlink_to(tmp_path)
    (root / "loop.png").symlink_to("loop.png")
    (root / "dangling.png").symlink_to("nowhere.png")
    shutil.copytree(root / "film", tmp_path / "film")
    (root / "film_linked").mkdir()
    (root / "film_linked" / "0.png").symlink_to(tmp_path / "outside.png")
    os.mkfifo(root / "pipe.png")
    os.mkfifo(root / "pipes" / "0.png")
    monkeypatch.chdir(root)
    return Sandbox(root, tmp_path / "out")


@pytest.fixture(scope="session")
def adapter_folder(tiny_base, tmp_path_factory) -> Path:
    """An adapter on the tiny base, as a finetune writes it."""
    from internvl.model.adapter import choose_trainable, save_adapter
    from internvl.model.checkpoint import Checkpoint
    from internvl.model.loading import load_model

    model, tokenizer = load_model(tiny_base)
    choose_trainable(model, freeze_llm=True, freeze_backbone=True, freeze_mlp=True, use_llm_lora=4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    save_adapter(model, folder, base=tiny_base, base_sha256=Checkpoint(tiny_base).sha256())
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def damage_one(sandbox):
    """``damage_one(FOLDER, name, content)`` is a folder like FOLDER with one file of other content."""

    def build(folder: Path, name: str, content: bytes | None) -> Path:
        copy = sandbox.inputs / "checkpoint"
        if copy.is_dir():
            shutil.rmtree(copy)
        copy.mkdir()
        for file in folder.iterdir():
            if file.is_file() and file.name != name:
                (copy / file.name).symlink_to(file)
        if content is not None:
            (copy / name).write_bytes(content)
        return copy

    return build


@pytest.fixture(scope="session")
def read_file():
    return lambda file: json.loads(Path(file).read_text(encoding="utf-8"))
