"""How many rows go through the model at once: as many as fit into memory, up to where more would not be faster."""

import logging
from dataclasses import replace

from peft import PeftModel

from internvl.data.sampling import TokenBudget, choose_strategy
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.train.arguments import FinetuneArguments, ModelArguments
from internvl.train.epoch_plan import EpochPlan
from internvl.train.memory import plan_memory
from internvl.train.run_folder import RunFolder
from internvl.train.setup import training_dtype

logger = logging.getLogger(__name__)
# Tokens that keep any GPU of today busy: four images of 7 tiles with their captions are half of it.
ENOUGH_TOKENS = 16_384
RECORDED = "micro_batch_rows"  # in the run's record


def fit_micro_batch(
    plan: EpochPlan,
    model: InternVLChatModel | PeftModel,
    model_args: ModelArguments,
    args: FinetuneArguments,
    folder: RunFolder,
) -> EpochPlan:
    """Divide a step's rows into as large micro-batches as fit without recomputing activations.

    Sets ``per_device_train_batch_size`` and ``gradient_accumulation_steps`` of ``args``, which the trainer is made
    with. The size is written into the run's record: a training that goes on takes it from there, because sums of
    another order have other last bits.

    Args:
        plan: of the epoch, with the rows of a step as the flags divide them.
        model: with its frozen parts chosen.
        model_args: what of the memory plan is given.
        args: gets the division.
        folder: of the run, whose record is read and completed.

    Returns:
        The plan of the epoch with that division.
    """
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    sizes = [size for size in range(rows, 0, -1) if rows % size == 0]
    earlier = (folder.read_record() or {}).get(RECORDED)
    known = earlier if earlier in sizes and not args.overwrite_output_dir else None
    recompute = model_args.grad_checkpoint.lower()
    chosen, largest = plan, plan.largest_micro_batch(args)
    for size in [known] if known else sizes:
        args.per_device_train_batch_size, args.gradient_accumulation_steps = size, rows // size
        # Packing fills what the longest rows of a micro-batch would.
        budget = size * int(plan.lengths.max()) if isinstance(plan.strategy, TokenBudget) else None
        chosen = replace(plan, strategy=choose_strategy(plan.groups.groups, budget))
        largest = chosen.largest_micro_batch(args)
        if known or size == 1:
            break
        if largest.tokens > ENOUGH_TOKENS:
            continue
        memory = plan_memory(
            model,
            largest,
            dtype=training_dtype(args),
            device=args.device,
            recompute=recompute,
        )
        if memory.total <= memory.available and (memory.num_recomputed == 0 or recompute == "true"):
            break
    folder.record[RECORDED] = args.per_device_train_batch_size
    logger.info(
        "Micro-batches: %d rows at once, %d tokens at most, %d to a step%s",
        args.per_device_train_batch_size,
        largest.tokens,
        args.gradient_accumulation_steps,
        " (as before)" if known else "",
    )
    return chosen
