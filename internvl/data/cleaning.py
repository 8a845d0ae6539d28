"""Split annotation files into the rows that can be trained on and those that cannot."""

from pathlib import Path

from internvl.data.checking import BAD, DatasetCheck
from internvl.data.dataset import ConversationDataset
from internvl.errors import UserError
from internvl.json_files import write_json
from internvl.model.atomic_folder import atomic_folder


def write_clean(dataset: ConversationDataset, check: DatasetCheck, meta: Path, folder: Path) -> tuple[int, int]:
    """Write ``set<n>_<file>_<n>.jsonl``, ``set<n>_<file>_<n>.rejected.jsonl`` and ``meta.json`` to a new folder.

    Lines are copied byte for byte; the original files are not touched. The meta file has the same entries with the
    good rows and their true number.

    Args:
        dataset: the training set whose rows are split.
        check: what is known of its rows.
        meta: its meta file, for messages.
        folder: where to; created.

    Returns:
        How many rows were good and how many were rejected.

    Raises:
        UserError: the folder is there already, or a data set has no good row left.
    """
    if folder.exists():
        raise UserError(f"{folder}: is there already. Name a new folder.")
    good = rejected = 0
    entries: dict[str, dict] = {}
    with atomic_folder(folder) as partial:
        for position, spec in enumerate(dataset.specs):
            names, kept = [], 0
            for number in dataset.file_numbers(spec):
                _, rows = dataset.files[number]
                bad = check.files[number].row_stats["status"] == BAD
                # Names of data sets are the user's and may be no file names.
                stem = f"set{position + 1}_{rows.path.stem}_{len(names) + 1}"
                with (
                    open(partial / f"{stem}.jsonl", "wb") as good_lines,
                    open(partial / f"{stem}.rejected.jsonl", "wb") as rejected_lines,
                ):
                    for index in range(len(rows)):
                        (rejected_lines if bad[index] else good_lines).write(rows.line(index).rstrip(b"\r\n") + b"\n")
                names.append(folder / f"{stem}.jsonl")
                kept += int((~bad).sum())
                rejected += int(bad.sum())
            if kept == 0:
                raise UserError(f"{meta}:{spec.name}: no row of it can be trained on. Correct the rows.")
            good += kept
            entries[spec.name] = spec.as_entry(names, kept)
        write_json(partial / "meta.json", entries)
    return good, rejected
