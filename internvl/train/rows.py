"""Which rows of the data sets train, in which groups, and what data_report.json says of them."""

import logging
from collections import Counter

import numpy as np

from internvl.data.checking import CUT, LONG, DatasetCheck
from internvl.data.dataset import ConversationDataset
from internvl.data.meta import DatasetSpec
from internvl.data.sharing import EpochUnits, group_rows, sharing_keys, single_rows
from internvl.errors import UserError
from internvl.train.arguments import DataArguments, FinetuneArguments, ModelArguments

logger = logging.getLogger(__name__)


def choose_rows(
    dataset: ConversationDataset, check: DatasetCheck, data_args: DataArguments, model_args: ModelArguments
) -> list[int]:
    """Leave out the rows that are to be left out, say what is in the data, and return each item's length in tokens.

    Raises:
        UserError: rows cannot be trained on, or none is left.
    """
    check.raise_errors(
        f"Nothing was trained. All of them: python tools/check_data.py {data_args.meta_path} "
        f"--model {model_args.model_name_or_path} --out report.json"
    )
    status = check.facts(dataset.index)["status"]
    dataset.keep(status != LONG)
    if len(dataset) == 0:
        raise UserError(
            f"{data_args.meta_path}: all rows are longer than --max_seq_length {data_args.max_seq_length}. Raise it, "
            "or pass --on_long_sample fewer_tiles."
        )
    lengths = check.lengths(dataset.index)
    logger.info(
        "Data: %s rows of %d to %d tokens (median %d), %d of them cut to max_seq_length, %d left out for their length",
        f"{len(lengths):,}",
        min(lengths),
        max(lengths),
        np.median(lengths),
        (status == CUT).sum(),
        (status == LONG).sum(),
    )
    notes = sum((file.all_notes() for file in check.files), Counter())
    if notes:
        logger.info("Not used: %s", "; ".join(f"{note}: {count:,}" for note, count in notes.most_common(10)))
    return lengths


def choose_units(
    dataset: ConversationDataset,
    check: DatasetCheck,
    lengths: list[int],
    data_args: DataArguments,
    training_args: FinetuneArguments,
) -> EpochUnits:
    """Return the rows of an epoch, in groups that share images if --share_image_prefix says so."""
    if not data_args.share_image_prefix:
        if not (data_args.group_by_length or data_args.packing):
            lengths = [1] * len(lengths)  # equal lengths leave the shuffled order of each step alone
        return single_rows(lengths)
    facts = check.facts(dataset.index)
    owners = [dataset.files[number][0] for number in range(len(dataset.files))]
    sets = np.array([dataset.specs.index(spec) for spec in owners])[dataset.index[:, 0]]
    augmented = np.array([spec.data_augment for spec in owners])[dataset.index[:, 0]]
    units = group_rows(
        sharing_keys(dataset.index, facts, sets, ~augmented & (facts["status"] != CUT)),
        lengths,
        facts["image_tokens"],
        max_rows=training_args.train_batch_size * training_args.gradient_accumulation_steps,
        max_tokens=data_args.max_seq_length,
    )
    logger.info(
        "Shared images: %s rows in %s groups, %.1f times fewer tokens",
        f"{len(lengths):,}",
        f"{len(units.groups):,}",
        sum(lengths) / sum(units.costs),
    )
    return units


def data_report(
    specs: list[DatasetSpec], check: DatasetCheck, lengths: list[int], skipped: list[dict], skipped_steps: list[int]
) -> dict:
    """Return what data_report.json holds: what was trained on, left out, and skipped."""
    p50, p95 = np.percentile(lengths, [50, 95])
    return {
        "datasets": {spec.name: [str(path) for path in spec.annotations] for spec in specs},
        "rows": len(lengths),
        "tokens": {"p50": float(p50), "p95": float(p95), "max": max(lengths), "total": sum(lengths)},
        "left_out": [problem.message for problem in check.left_out],
        "skipped": skipped,
        "skipped_steps": skipped_steps,
    }
