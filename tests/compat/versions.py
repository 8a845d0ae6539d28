"""Run ``use_folder.py`` on several versions of transformers and compare what comes out.

    python -m tests.compat.versions --folder FOLDER [--hf FOLDER] [VERSION…]     # usually through tests/compat/run.sh

Each version is installed once, with what it asks for, into a folder of its own (``tests/compat/.versions``, or
``$INTERNVL_COMPAT``), and found before the environment's packages; torch stays the environment's one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
VERSIONS = ("4.57.6", "5.0.0", "5.5.4", "5.12.1", "5.17.0", "5.19.0", "5.20.0", "5.22.0", "5.23.0", "5.24.0")
OLDEST, NEWEST = VERSIONS[0], VERSIONS[-1]
IMAGES = 20


class Outcome(NamedTuple):
    """What a version made of the folder: the content of OUT.json, or the last lines of a failure."""

    version: str
    result: dict | None
    failure: str
    seconds: float


def environment(wanted: str) -> Path | None:
    """Install a version of transformers unless it is there; returns where, None for the environment's own."""
    if wanted == version("transformers"):
        return None
    folder = Path(os.environ.get("INTERNVL_COMPAT", HERE / ".versions")) / wanted
    if not (folder / "complete").is_file():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
        subprocess.run([*command, "--target", str(folder), f"transformers=={wanted}"], check=True)
        (folder / "complete").touch()
    return folder


def use(wanted: str, folder: Path, hf_folder: Path | None) -> Outcome:
    """Run ``use_folder.py`` on one version, far from the repository and with the hub switched off."""
    installed = environment(wanted)
    images = sorted((REPOSITORY / "data" / "habitat" / "images" / "val").glob("*.jpg"))[:IMAGES]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as elsewhere:
        out = Path(elsewhere) / "out.json"
        process = subprocess.run(
            [sys.executable, HERE / "use_folder.py", folder.resolve(), hf_folder or "-", out, *images],
            cwd=elsewhere, capture_output=True, text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            | ({"PYTHONPATH": str(installed)} if installed else {})
            | {"HF_MODULES_CACHE": f"{elsewhere}/modules", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        result = json.loads(out.read_text(encoding="utf-8")) if process.returncode == 0 else None
    return Outcome(wanted, result, process.stderr[-3000:], time.monotonic() - started)


def differences(result: dict, expected: dict) -> list[str]:
    """Return what of a version's result is not as it is on the version the project is pinned to."""
    same = sum(mine == theirs for mine, theirs in zip(result["captions"], expected["captions"], strict=True))
    found = [] if same == len(expected["captions"]) else [f"captions ({same} of {len(expected['captions'])} equal)"]
    found += [name for name in ("chat", "generate", "template", "hf") if result.get(name) != expected.get(name)]
    if logit_error(result, expected) > 1e-5:
        found.append("logits")
    return found


def logit_error(result: dict, expected: dict) -> float:
    """Return the largest absolute difference of the logits."""
    rows = zip(result["logits"], expected["logits"], strict=True)
    return max(abs(mine - theirs) for row in rows for mine, theirs in zip(*row, strict=True))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="checkpoint folder of the published layout")
    parser.add_argument("--hf", type=Path, help="the same in transformers' own layout")
    parser.add_argument("versions", nargs="*", default=VERSIONS, help="of transformers (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    expected = use(version("transformers"), args.folder, args.hf)
    if expected.result is None:
        sys.stderr.write(expected.failure)
        return 1
    table = Table("transformers", "captions equal", "chat, beams, template, -hf", "logits differ by", "seconds")
    failed = 0
    for wanted in args.versions:
        outcome = use(wanted, args.folder, args.hf)
        if outcome.result is None:
            table.add_row(wanted, "fails", outcome.failure.strip().splitlines()[-1][:60], "", f"{outcome.seconds:.0f}")
            failed += 1
            continue
        found = differences(outcome.result, expected.result)
        failed += bool(found)
        captions = zip(outcome.result["captions"], expected.result["captions"], strict=True)
        table.add_row(
            outcome.result["transformers"],
            f"{sum(mine == theirs for mine, theirs in captions)} of {IMAGES}",
            ", ".join(found) or "equal",
            f"{logit_error(outcome.result, expected.result):.1e}",
            f"{outcome.seconds:.0f}",
        )
    Console().print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
