"""Results of the check, kept between runs under the hash of everything they depend on."""

import hashlib
import json
import logging
import os
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

from internvl.data.checking import DatasetCheck, FileCheck, Problem, check_dataset, media_state
from internvl.data.dataset import ConversationDataset
from internvl.data.user_cache import user_cache
from internvl.model import internvl_chat

logger = logging.getLogger(__name__)
# Another version of these files may judge a row differently.
CODE_FOLDERS = (Path(__file__).parent, Path(internvl_chat.__file__).parent)


def cache_folder() -> Path | None:
    """Return where results are kept; None where there is no such place."""
    return user_cache("checks", "The result of the check")


def check_with_cache(data: ConversationDataset) -> DatasetCheck:
    """Check a data set; files whose content, media and settings are those of an earlier check are not read again.

    A cache that cannot be found, read or written is a warning: the check itself is what counts.
    """
    folder = cache_folder()
    if folder is None:
        return check_dataset(data)
    shared = _shared_key(data)
    files = [folder / f"{key(data, number, shared)}.npz" for number in range(len(data.files))]
    found = {number: check for number, file in enumerate(files) if (check := load(file, data, number)) is not None}
    missing = [number for number in range(len(files)) if number not in found]
    if missing:
        checked = check_dataset(data, numbers=missing)
        for number in missing:
            found[number] = checked.files[number]
            save(files[number], found[number])
    return DatasetCheck([found[number] for number in range(len(files))], data.settings.max_seq_length)


def _shared_key(data: ConversationDataset) -> str:
    """Return the hash of what decides about the rows of every file: code, tokenizer, settings and seed."""
    digest = hashlib.sha256()
    for part in (
        b"".join(file.read_bytes() for folder in CODE_FOLDERS for file in sorted(folder.glob("*.py"))),
        data.tokenizer.backend_tokenizer.to_str().encode(),
        repr((data.settings, data.seed)).encode(),
    ):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def key(data: ConversationDataset, number: int, shared: str) -> str:
    """Return the hash of an annotation file's content and of all that decides what becomes of its rows."""
    spec, rows = data.files[number]
    own = (rows.sha256(), str(rows.path), str(spec.root.resolve()), spec.max_dynamic_patch, number, spec.balance)
    return hashlib.sha256(repr((shared, own)).encode()).hexdigest()


def save(file: Path, check: FileCheck) -> None:
    """Write a result beside its place and rename it, so that a reader finds all of it or nothing."""
    beside = file.with_suffix(f".{os.getpid()}.tmp")
    content = {"problems": check.problems, "media": check.media, "notes": check.notes, "kinds": check.kinds}
    text = json.dumps(content).encode()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as stream:
            np.savez(stream, row_stats=check.row_stats, links=check.links, text=np.frombuffer(text, np.uint8))
        beside.replace(file)
    except OSError as err:
        logger.warning("The result of the check could not be kept in %s (%s): the next run checks again.", file, err)


def load(file: Path, data: ConversationDataset, number: int) -> FileCheck | None:
    """Return a kept result, or None if there is none or an image or video has changed since."""
    try:
        if not file.is_file():
            return None
        with np.load(file, allow_pickle=False) as stored:
            row_stats, links = stored["row_stats"], stored["links"]
            text = json.loads(stored["text"].tobytes())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as err:
        logger.warning("%s: cannot be read (%s) and is not used: the data is checked again.", file, err)
        return None
    root = data.files[number][0].root
    try:
        unchanged = all(media_state(root / name) == tuple(state) for name, state in text["media"].items())
    except OSError:
        return None
    # A missing image may have been put there since; only a result without errors is final.
    if not unchanged or any(not left_out for *_, left_out in text["problems"]):
        return None
    problems = [Problem(*problem) for problem in text["problems"]]
    notes, kinds = Counter(text["notes"]), dict(text["kinds"])
    return FileCheck(row_stats, problems, dict(text["media"]), notes, kinds=kinds, links=links)
