"""Checkpoints that are complete or absent: written beside, listed with their hashes, renamed, verified before use."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from internvl.distributed import barrier
from internvl.errors import UserError
from internvl.json_files import write_json
from internvl.model.atomic_folder import sync

logger = logging.getLogger(__name__)
PREFIX = "checkpoint-"
STAGING = ".saving"
MANIFEST = "complete.json"
BLOCK_BYTES = 1 << 24


def hash_file(file: Path) -> str:
    """Return the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: Path) -> None:
    """Put all of a folder on disk, with a list of its files, their sizes and hashes, which is written last."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    listed = {}
    for file in files:
        sync(file)
        listed[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": hash_file(file)}
    write_json(folder / MANIFEST, {"files": listed})
    sync(folder / MANIFEST)
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync(path)


def verify_manifest(folder: Path) -> str | None:
    """Return what is wrong with a sealed folder, None if all its files are as they were written."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in listed.items():
            file = folder / name
            if not file.is_file():
                return f"lacks {name}"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size:,} of {expected['bytes']:,} bytes"
            if hash_file(file) != expected["sha256"]:
                return f"{name} has another content than was written"
    except FileNotFoundError:
        return f"lacks {MANIFEST}, which is written last"
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        return f"{MANIFEST} is damaged ({err})"
    except OSError as err:
        return f"cannot be read ({err})"
    return None


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return the checkpoint-N folders, the newest step first."""
    found = [
        path for path in output_dir.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit() and path.is_dir()
    ]
    return sorted(found, key=lambda path: -int(path.name.removeprefix(PREFIX)))


def last_good_checkpoint(output_dir: Path) -> Path | None:
    """Return the newest checkpoint that is whole; says of newer ones what is wrong with them."""
    for folder in list_checkpoints(output_dir):
        fault = verify_manifest(folder)
        if fault is None:
            return folder
        logger.warning("%s: is damaged (%s) and not used.", folder, fault)
    return None


def rotate(output_dir: Path, limit: int | None, keep: str | None) -> None:
    """Delete the oldest checkpoints above ``limit``, but never the newest nor ``keep``, the best one."""
    if not limit or limit < 1:
        return
    checkpoints = list_checkpoints(output_dir)
    for folder in reversed(checkpoints[limit:]):
        if keep is None or folder != Path(keep):
            shutil.rmtree(folder)


@contextmanager
def atomic_checkpoint(
    output_dir: Path, step: int, *, is_main_process: bool, limit: int | None, keep: str | None
) -> Iterator[Path]:
    """Yield the folder to write a checkpoint to; at the end it is there as checkpoint-``step``, whole.

    All ranks take part; the main process writes the manifest and renames.

    Args:
        output_dir: of the training.
        step: optimizer steps so far.
        is_main_process: whether this one does it.
        limit: as in :func:`rotate`.
        keep: as in :func:`rotate`.

    Raises:
        UserError: it cannot be written, a full disk being the usual cause; earlier checkpoints are untouched.
    """
    with _staging(output_dir, f"{PREFIX}{step}", is_main_process=is_main_process) as folder:
        yield folder
        barrier()
        if is_main_process:
            final = output_dir / folder.name
            write_manifest(folder)
            if final.exists():  # a damaged one of an earlier run: a whole one is never written again
                shutil.rmtree(final)
            os.rename(folder, final)
            sync(output_dir)
            rotate(output_dir, limit, keep)


@contextmanager
def atomic_output(output_dir: Path, *, is_main_process: bool, last: str) -> Iterator[Path]:
    """Yield a folder to write the result to; at the end its files are in ``output_dir``, each whole, ``last`` last.

    Raises:
        UserError: as :func:`atomic_checkpoint`.
    """
    with _staging(output_dir, "result", is_main_process=is_main_process) as folder:
        yield folder
        barrier()
        if is_main_process:
            for file in sorted(folder.iterdir(), key=lambda file: (file.name == last, file.name)):
                sync(file)
                os.replace(file, output_dir / file.name)
            sync(output_dir)


@contextmanager
def _staging(output_dir: Path, name: str, *, is_main_process: bool) -> Iterator[Path]:
    """Yield an empty folder beside the one it is for, on every process, and remove it at the end."""
    folder = output_dir / STAGING / name
    try:
        if is_main_process:
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.mkdir(parents=True)
        barrier()
        yield folder
        if is_main_process:
            shutil.rmtree(folder.parent)
        barrier()
    except (OSError, RuntimeError, SafetensorError) as err:
        if isinstance(err, RuntimeError) and not _is_write_failure(err):
            raise
        raise _cannot_write(output_dir, name, err) from err


def _is_write_failure(err: BaseException) -> bool:
    """Return whether a RuntimeError of torch's means that a file could not be written: its own writer says no more."""
    text = str(err).lower()
    return any(sign in text for sign in ("inline_container", "iostream", "no space left", "pytorchstreamwriter"))


def _cannot_write(output_dir: Path, what: str, err: BaseException) -> UserError:
    """Return the error that says why something could not be written, and what there is instead."""
    shutil.rmtree(output_dir / STAGING, ignore_errors=True)
    free = shutil.disk_usage(output_dir).free
    last = next((folder for folder in list_checkpoints(output_dir) if verify_manifest(folder) is None), None)
    kept = f"The last good checkpoint is {last}" if last else "There is no earlier checkpoint"
    reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
    return UserError(
        f"{output_dir}: {what} could not be written ({reason}; {free / 1e6:,.0f} MB are free). {kept}. Make room, "
        "then run the same command again: it continues from there."
    )
