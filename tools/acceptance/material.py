"""What the large checks work with: a random checkpoint of InternVL2-2B's shape, and rows about made-up pictures."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from acceptance.checks import REPOSITORY, TINY, Setting, require
from PIL import Image

CONFIG = Path(__file__).with_name("config_2b.json")
NOT_THE_MODEL = ("config.json", ".safetensors", ".py", ".md")  # ends of names of the tiny base that stay behind
CAPTIONS = 5
# Lengths of captions are spread as widely as those of people.
WORDS = (
    "a red wooden chair stands left of the small blue table in front of one bright window with white curtains".split()
)


def base(setting: Setting) -> Path:
    """Return the model that the large checks use, made at the first call; in a rehearsal it is the tiny base."""
    if setting.rehearsal:
        return TINY
    folder = setting.work / "base-2b"
    if not (folder / "written").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        published = setting.work / "published-2b"
        published.mkdir(exist_ok=True)
        shutil.copyfile(CONFIG, published / "config.json")
        for file in TINY.iterdir():
            if not file.name.endswith(NOT_THE_MODEL):
                shutil.copyfile(file, published / file.name)
        script = REPOSITORY / "benchmarks" / "full_size.py"
        run(sys.executable, str(script), "--only-write", str(folder), "--model", str(published))
        run(sys.executable, "tools/prepare_pretrained.py", str(folder))
        (folder / "written").touch()
    return folder


def run(*command: str, **settings: str) -> str:
    """Run a command of the repository; return what it printed on standard output.

    Raises:
        Failed: it ended with another status than 0.
    """
    result = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=os.environ | settings
    )
    print(result.stdout[-4000:], result.stderr[-4000:], sep="\n")
    lines = (result.stderr.strip() or result.stdout.strip() or "nothing was printed").splitlines()
    require(result.returncode == 0, f"{' '.join(command[1:3])} ended with status {result.returncode}: {lines[-1]}")
    return result.stdout


def logged_losses(out: Path) -> list[float]:
    """Return the loss of each step of a training that has ended."""
    history = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def rows(
    setting: Setting, name: str, *, images: int, captions: int = CAPTIONS, words: tuple[int, int] = (6, 30)
) -> Path:
    """Return the meta file of a data set of made-up pictures of 640 × 480 px, made at the first call.

    Args:
        setting: whose folder it is in.
        name: of the data set.
        images: how many; 0 for rows of text alone.
        captions: rows about each, or rows of text.
        words: fewest and most of a caption.
    """
    folder = setting.work / name
    meta = folder / "meta.json"
    if meta.is_file():
        return meta
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng, noise = random.Random(0), np.random.default_rng(0)
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as stream:
        for number in range(images or 1):
            file = f"images/{number:05d}.jpg"
            if images:
                small = noise.integers(0, 256, (12, 16, 3), dtype=np.uint8)
                Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(folder / file, quality=90)
            for _ in range(captions):
                said = " ".join(rng.choices(WORDS, k=rng.randint(*words)))
                question = "<image>\nDescribe the room." if images else "Describe a room."
                turns = [{"from": "human", "value": question}, {"from": "gpt", "value": said}]
                stream.write(json.dumps({"conversations": turns, **({"image": file} if images else {})}) + "\n")
    content = {"rows": {"root": str(folder), "annotation": str(folder / "rows.jsonl")}}
    meta.write_text(json.dumps(content), encoding="utf-8")
    return meta
