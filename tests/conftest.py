"""Fixtures every test may use: where things are, tiny checkpoints built in seconds, and rows to train on."""

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

from tests.faults.outcomes import OUTCOMES
from tests.quick_meteor import installed_meteor, use_quick_meteor

if TYPE_CHECKING:
    from internvl.data.batch import Sample

REPOSITORY = Path(__file__).resolve().parents[1]
# As in an activated environment: with another ninja than its own, DeepSpeed's parts would be built again each time.
os.environ["PATH"] = os.pathsep.join([f"{sys.prefix}/bin", os.environ["PATH"]])
# What AutoModel copies of a checkpoint's code: not into the user's cache, and for each of several workers its own.
# Read when transformers is imported, so a fixture would be too late.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="internvl-tests-modules-")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)
INSTALLED_METEOR = installed_meteor()
QUICK_METEOR = tempfile.mkdtemp(prefix="internvl-tests-meteor-")
atexit.register(shutil.rmtree, QUICK_METEOR, ignore_errors=True)
use_quick_meteor(Path(QUICK_METEOR))


def pytest_sessionfinish(session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["outcomes"] = {name: dict(outcomes) for name, outcomes in OUTCOMES.items()}


def pytest_testnodedown(node, error) -> None:
    for name, outcomes in getattr(node, "workeroutput", {}).get("outcomes", {}).items():
        OUTCOMES.setdefault(name, Counter()).update(outcomes)


def pytest_terminal_summary(terminalreporter) -> None:
    if OUTCOMES:
        total = sum(outcomes.total() for outcomes in OUTCOMES.values())
        terminalreporter.section("damaged inputs")
        for name, outcomes in OUTCOMES.items():
            terminalreporter.line(
                f"{name}: {outcomes.total():,} ({outcomes['read']:,} read, {outcomes['refused']:,} refused)"
            )
        terminalreporter.line(f"{total:,} inputs were read or refused with one message.")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def real_meteor(monkeypatch) -> None:
    """METEOR with all its tables, where its values count; see ``tests/quick_meteor.py``."""
    import pycocoevalcap.meteor.meteor as package

    assert INSTALLED_METEOR is not None
    monkeypatch.setattr(package, "__file__", str(INSTALLED_METEOR / "meteor.py"))  # beside which it finds its program


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the project with real photos, the published tokenizer and golden values."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder shared/ beside the project, which only its developers and CI have")
    return folder


def bare_environment() -> dict[str, str]:
    """The environment without this repository on the import path."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def make_image(width: int, height: int, k: int) -> Image.Image:
    """A deterministic colourful image."""
    x = torch.arange(width).repeat(height, 1)
    y = torch.arange(height)[:, None].repeat(1, width)
    channels = [x * (3 + k) + 7 * y, x * x // (5 + k) + 2 * y, (x * y) // (9 + k) + 29 * k]
    return Image.fromarray(torch.stack([c % 256 for c in channels], dim=-1).to(torch.uint8).numpy())


def pixels(sample: "Sample") -> torch.Tensor | None:
    """The tiles of all images of a training sample, uint8 (T, 3, S, S); None of a text."""
    return torch.cat([image.tiles for image in sample.images]) if sample.images else None


def num_tiles(sample: "Sample") -> int:
    return sum(len(image) for image in sample.images)


@pytest.fixture(scope="session")
def warm_environment(tmp_path_factory) -> Iterator[Path]:
    """A folder with bin/python that starts in a fraction of a second, for commands that tests run by the dozen."""
    if not hasattr(os, "pidfd_open"):
        yield Path(sys.prefix)  # not Linux: the real one is as good, only slower
        return
    folder = tmp_path_factory.mktemp("warm")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.warm_python", str(folder)],
        cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout.readline() == "ready\n"
    yield folder
    server.stdin.close()
    server.wait(30)


@pytest.fixture(scope="session")
def warm_python(warm_environment) -> Path:
    return warm_environment / "bin" / "python"


def free_port() -> int:
    """Return a TCP port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keep results of data checks, also those of launchers, out of the user's cache folder."""
    os.environ["INTERNVL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def rows_folder(tmp_path_factory) -> Path:
    """A data set of 24 rows: single images of three shapes, two images, and text; with its meta file."""
    folder = tmp_path_factory.mktemp("rows")
    (folder / "images").mkdir()
    shapes = [(60, 60), (120, 60), (90, 130)]
    for number in range(12):
        make_image(*shapes[number % 3], number).save(folder / "images" / f"image_{number:06d}.png")
    rows = []
    for number in range(24):
        answer = f"Pattern {number} has {number % 3 + 1} colours and {'many ' * (number % 4)}waves."
        if number % 4 == 3:
            question, image = f"What is {number} plus one?", None
        elif number % 4 == 2:
            question, image = (
                "<image>\n<image>\nCompare them.",
                [f"images/image_{n % 12:06d}.png" for n in (number, number + 1)],
            )
        else:
            question, image = "<image>\nDescribe it.", f"images/image_{number % 12:06d}.png"
        row = {"id": number, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}
        rows.append(row if image is None else {**row, "image": image})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    meta = {"rows": {"root": str(folder), "annotation": str(folder / "train.jsonl"), "length": 24}}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory, rows_folder) -> Path:
    """A random-weight InternVL2 of 56 px tiles (4 tokens each) in the published layout."""
    from make_tiny_base import make_tiny_base

    folder = tmp_path_factory.mktemp("base")
    make_tiny_base(
        folder, [rows_folder / "train.jsonl"], vocab_size=400, image_size=56, patch_size=14, width=64, layers=2
    )
    return folder


@pytest.fixture(scope="session")
def tiny_member(tmp_path_factory, rows_folder) -> Callable[[str], Path]:
    """A function: name of a language model → such a tiny base with it, and with a tokenizer of its kind."""
    from make_tiny_base import make_tiny_base

    @cache
    def make(llm: str) -> Path:
        folder = tmp_path_factory.mktemp(llm)
        corpus = [rows_folder / "train.jsonl"]
        make_tiny_base(folder, corpus, llm=llm, vocab_size=400, image_size=56, patch_size=14, width=64, layers=2)
        return folder

    return make


@pytest.fixture
def tiny_model(tiny_base):
    """The tiny base, loaded anew: (model, tokenizer)."""
    from internvl.model.loading import load_model

    return load_model(tiny_base)


@pytest.fixture
def trained_adapter(tiny_base, tmp_path):
    """An adapter folder on the tiny base with LoRA on both halves and the projector trained, random values."""
    from internvl.model.adapter import choose_trainable, save_adapter
    from internvl.model.checkpoint import Checkpoint
    from internvl.model.loading import load_model

    model, tokenizer = load_model(tiny_base)
    choose_trainable(model, freeze_llm=True, freeze_backbone=True, use_llm_lora=8, use_backbone_lora=4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    folder = tmp_path / "adapter"
    save_adapter(model, folder, base=tiny_base, base_sha256=Checkpoint(tiny_base).sha256())
    tokenizer.save_pretrained(folder)
    return folder
