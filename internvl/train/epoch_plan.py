"""The plan of an epoch: which rows train, in which groups and micro-batches, and what is reported of them."""

import itertools
import logging
from collections import Counter
from dataclasses import dataclass

import numpy as np
from transformers import TrainingArguments

from internvl.data.checking import CUT, LONG, UNWEIGHTED, DatasetCheck
from internvl.data.dataset import ConversationDataset
from internvl.data.grouping import EpochGroups, group_rows, sharing_keys, single_rows
from internvl.data.meta import DatasetSpec
from internvl.data.row_keys import REJECTED_NOTE
from internvl.data.sampling import BatchingStrategy, MicroBatchSampler, choose_strategy
from internvl.errors import UserError
from internvl.train.arguments import DataArguments, FinetuneArguments, ModelArguments
from internvl.train.memory import MicroBatch

logger = logging.getLogger(__name__)
PLANNED_STEPS = 200  # whose micro-batches are looked at for the largest


@dataclass(frozen=True)
class EpochPlan:
    """What an epoch trains on and how it is split, for the trainer and for the memory plan.

    ``groups`` are the rows that train in one sequence and ``strategy`` splits a step of them into micro-batches,
    which are ``packed`` or padded. ``lengths`` are the tokens of each row alone, ``max_tiles`` the most tiles of one.
    ``weighted``: some tokens count more or less than others: answers with a weight, or those that rows share.
    """

    groups: EpochGroups
    strategy: BatchingStrategy
    lengths: np.ndarray
    max_tiles: int
    packed: bool
    weighted: bool = False

    def sampler(self, args: TrainingArguments) -> MicroBatchSampler:
        """Return the sampler of this rank's micro-batches."""
        return MicroBatchSampler(
            self.groups.groups,
            self.groups.num_tokens,
            batch_size=args.train_batch_size,
            num_batches=args.gradient_accumulation_steps * args.world_size,
            rank=args.process_index,
            world_size=args.world_size,
            strategy=self.strategy,
            seed=args.data_seed if args.data_seed is not None else args.seed,
        )

    def largest_micro_batch(self, args: TrainingArguments) -> MicroBatch:
        """Return the largest micro-batch that comes up in the first steps, or may at worst."""
        tokens = args.train_batch_size * int(self.lengths.max())
        if self.packed:
            sampler, num_tokens = self.sampler(args), self.groups.num_tokens
            planned = (
                batch for step in itertools.islice(sampler.steps(), PLANNED_STEPS) for batch in sampler.assign(step)
            )
            tokens = int(max(max(num_tokens[batch].sum() for batch in planned if batch), num_tokens.max()))
        return MicroBatch(tokens=tokens, tiles=self.max_tiles * args.train_batch_size)


def plan_epoch(
    dataset: ConversationDataset,
    check: DatasetCheck,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: FinetuneArguments,
) -> EpochPlan:
    """Leave out the rows that are to be left out, and plan the epoch of the others.

    Args:
        dataset: the training set; rows that are left out are filtered from it.
        check: what is known of its rows.
        model_args: names the model in messages.
        data_args: sharing, packing and grouping by length.
        training_args: batch size and accumulation steps.

    Raises:
        UserError: rows cannot be trained on, or none is left.
    """
    lengths = choose_rows(dataset, check, data_args, model_args)
    groups = _choose_groups(dataset, check, lengths, data_args, training_args)
    # Packing fills what the longest rows would, so that it takes no more memory.
    budget = training_args.train_batch_size * int(lengths.max()) if data_args.packing else None
    return EpochPlan(
        groups=groups,
        strategy=choose_strategy(groups.groups, budget),
        lengths=lengths,
        max_tiles=int(check.row_stats(dataset.index)["tiles"].max()),
        packed=data_args.packing or data_args.share_image_prefix,
        weighted=data_args.share_image_prefix
        or bool(dataset.factors)
        or bool(check.row_stats(dataset.index)["weighted"].any()),
    )


def choose_rows(
    dataset: ConversationDataset,
    check: DatasetCheck,
    data_args: DataArguments,
    model_args: ModelArguments,
    *,
    uses_rejected: bool = False,
) -> np.ndarray:
    """Leave out the rows that are to be left out, say what is in the data, and return each item's length in tokens.

    Args:
        dataset: the training set, whose items are left out of it.
        check: what is known of its rows.
        data_args: names the meta file and limits in messages.
        model_args: names the model in messages.
        uses_rejected: rejected answers are trained on, so they are not said to be unused.

    Raises:
        UserError: rows cannot be trained on, or none is left.
    """
    check.raise_errors(
        f"Nothing was trained. All of them: python tools/check_data.py {data_args.meta_path} "
        f"--model {model_args.model_name_or_path} --out report.json"
    )
    status = check.row_stats(dataset.index)["status"]
    dataset.filter(check.trains(dataset.index))
    if len(dataset) == 0 and (status == UNWEIGHTED).any():
        raise UserError(
            f"{data_args.meta_path}: no row is left to learn: {(status == UNWEIGHTED).sum():,} have the weight 0, "
            f"{(status == LONG).sum():,} are longer than --max_seq_length. Give some a weight above 0."
        )
    if len(dataset) == 0:
        raise UserError(
            f"{data_args.meta_path}: all rows are longer than --max_seq_length {data_args.max_seq_length}. Raise it, "
            "or pass --on_long_sample fewer_tiles."
        )
    dataset.balance(check.kinds(dataset))
    lengths = check.lengths(dataset.index)
    logger.info(
        "Data: %s rows of %d to %d tokens (median %d), %d of them cut to max_seq_length, "
        "%d left out for their length%s",
        f"{len(lengths):,}",
        lengths.min(),
        lengths.max(),
        np.median(lengths),
        (status == CUT).sum(),
        (status == LONG).sum(),
        f", {(status == UNWEIGHTED).sum():,} for a weight of 0" if (status == UNWEIGHTED).any() else "",
    )
    notes = sum((file.all_notes() for file in check.files), Counter())
    if uses_rejected:
        notes.pop(REJECTED_NOTE, None)
    if notes:
        logger.info("Not used: %s", "; ".join(f"{note}: {count:,}" for note, count in notes.most_common(10)))
    return lengths


def refuse_weights(dataset: ConversationDataset, row_stats: np.ndarray, data_args: DataArguments) -> None:
    """Refuse rows that have weights.

    Raises:
        UserError: names the meta file.
    """
    if row_stats["weighted"].any() or any(spec.balance for spec in dataset.specs):
        raise UserError(
            f"{data_args.meta_path}: has weights or a balance, which say what answers of people count; here the "
            "reward or preference says what an answer counts. Remove them."
        )


def _choose_groups(
    dataset: ConversationDataset,
    check: DatasetCheck,
    lengths: np.ndarray,
    data_args: DataArguments,
    training_args: FinetuneArguments,
) -> EpochGroups:
    """Return the rows of an epoch, in groups that share images if --share_image_prefix says so."""
    if not data_args.share_image_prefix:
        if not (data_args.group_by_length or data_args.packing):
            lengths = np.ones_like(lengths)  # equal lengths leave the shuffled order of each step alone
        return single_rows(lengths)
    row_stats = check.row_stats(dataset.index)
    owners = [dataset.files[number][0] for number in range(len(dataset.files))]
    sets = np.array([dataset.specs.index(spec) for spec in owners])[dataset.index[:, 0]]
    augmented = np.array([spec.data_augment for spec in owners])[dataset.index[:, 0]]
    groups = group_rows(
        sharing_keys(dataset.index, row_stats, sets, ~augmented & (row_stats["status"] != CUT)),
        lengths,
        row_stats["image_tokens"],
        max_rows=training_args.train_batch_size * training_args.gradient_accumulation_steps,
        max_tokens=data_args.max_seq_length,
        links=check.links(dataset.index),
    )
    logger.info(
        "Shared images: %s rows in %s groups, %.1f times fewer tokens",
        f"{len(lengths):,}",
        f"{len(groups.groups):,}",
        lengths.sum() / groups.num_tokens.sum(),
    )
    return groups


def data_report(specs: list[DatasetSpec], check: DatasetCheck, lengths: np.ndarray) -> dict:
    """Return what data_report.json says of the data: what was trained on, and what was left out."""
    p50, p95 = np.percentile(lengths, [50, 95])
    return {
        "datasets": {spec.name: [str(path) for path in spec.annotations] for spec in specs},
        "rows": len(lengths),
        "tokens": {"p50": float(p50), "p95": float(p95), "max": int(lengths.max()), "total": int(lengths.sum())},
        "left_out": [problem.message for problem in check.left_out],
    }
