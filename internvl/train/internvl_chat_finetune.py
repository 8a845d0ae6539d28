"""Finetune an InternVL-Chat model: the script that torchrun starts on every process.

    torchrun --nproc_per_node=1 internvl/train/internvl_chat_finetune.py \\
        --model_name_or_path pretrained/InternVL2-2B --meta_path shell/data/habitat.json \\
        --output_dir log/habitat/lora_annots_1 --freeze_llm True --freeze_mlp True --freeze_backbone True \\
        --use_llm_lora 128

Usually called by a launcher under ``shell/``, which sets these flags. ``--help`` lists all of them.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import distributed
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import TrainOutput

from internvl.data.batch import Collator
from internvl.data.check_cache import check_with_cache
from internvl.data.checking import DatasetCheck
from internvl.data.dataset import ConversationDataset
from internvl.data.meta import DatasetSpec, read_meta
from internvl.device import choose_kernels
from internvl.distributed import leave_ranks
from internvl.errors import UserError, ends_on_user_error
from internvl.json_files import write_json
from internvl.logging_utils import setup_logging
from internvl.model.checkpoint import Checkpoint
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.loading import LoadedModel, source_of
from internvl.model.trainable import describe_trainable
from internvl.model.vision_cache import VisionCache
from internvl.train.arguments import DataArguments, FinetuneArguments, ModelArguments, parse_arguments
from internvl.train.checkpointing import atomic_output
from internvl.train.data_workers import fit_workers, raise_lost_batch
from internvl.train.epoch_plan import data_report, plan_epoch
from internvl.train.interruption import Heartbeat, StopOnSignal, describe_stragglers, limit_waiting
from internvl.train.memory import MemoryPlan, PeakMemory, plan_memory, recompute_activations
from internvl.train.micro_batch import fit_micro_batch
from internvl.train.output import OutputFolder
from internvl.train.progress import ProgressLine
from internvl.train.run_folder import (
    FINISHED,
    REPORT,
    ResumePoint,
    RunFolder,
    base_identity,
    describe_data,
    make_record,
)
from internvl.train.run_page import RunPage
from internvl.train.setup import load_for_training, render_settings, training_dtype
from internvl.train.sharding import shards_parameters
from internvl.train.trainer import FinetuneTrainer
from internvl.train.validation import AnswerSteps, make_evaluator

logger = logging.getLogger("internvl.train")
BATCH_TENSORS = 8  # ids, labels, mask, pixels, flags, and some that packing adds
BUCKETS = ("reduce_bucket_size", "allgather_bucket_size")  # in DeepSpeed's config, in elements
SHOWN_SKIPPED = 10  # in the final summary; data_report.json lists all


class Run(NamedTuple):
    """What a command is to do: its data sets, what it starts from, its output folder, and where it goes on."""

    specs: list[DatasetSpec]
    start: Checkpoint
    folder: RunFolder
    resume: ResumePoint


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Parse → load → check the data → train → save."""
    setup_logging()
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    model_args, data_args, training_args = arguments
    run = open_run(arguments)
    if run.resume.finished:
        return
    loaded = load_for_training(model_args, data_args, training_args)
    cache = open_vision_cache(loaded.model, data_args, training_args)
    dataset, check = open_data(run, loaded, cache, data_args, training_args)
    plan = plan_epoch(dataset, check, *arguments)
    if training_args.auto_micro_batch:
        plan = fit_micro_batch(plan, loaded.model, model_args, training_args, run.folder)
    logger.info("Model: %s", describe_trainable(loaded.model))
    trainer = FinetuneTrainer(
        train_dataset=dataset,
        data_collator=Collator(
            loaded.tokenizer.pad_token_id, loaded.model.config.image_size, packed=plan.packed, keep_images=bool(cache)
        ),
        plan=plan,
        vision_cache=cache,
        **trainer_arguments(run, loaded, data_args, training_args),
    )
    finish_run(trainer, run, model_args, data_report(run.specs, check, plan.lengths))


def open_run(arguments: Sequence[Any]) -> Run:
    """Return what a command is to do, from its arguments: those of the model, the data, the training, and others.

    Sets the seed, the kernels, and how long ranks wait for each other.

    Raises:
        UserError: the meta file or the checkpoint is not there, or the output folder holds another run.
    """
    model_args, data_args, training_args = arguments[:3]
    limit_waiting(training_args.ddp_timeout)
    choose_kernels()
    set_seed(training_args.seed)
    specs = read_meta(data_args.meta_path)  # before the model: a typing mistake should not cost minutes
    start = Checkpoint(model_args.model_name_or_path)
    folder = RunFolder(
        training_args.output_dir,
        make_record(arguments, training_args.world_size, describe_data(specs), base_identity(start.weight_files)),
    )
    resume = folder.find_resume_point(training_args.overwrite_output_dir, training_args.resume_from_checkpoint)
    if resume.finished:
        logger.info(
            "%s: this training is finished, so nothing is done. --overwrite_output_dir True trains anew.", folder.path
        )
    elif resume.checkpoint:
        logger.info("Continuing from %s (--overwrite_output_dir True starts anew).", resume.checkpoint)
    return Run(specs, start, folder, resume)


def open_data(
    run: Run,
    loaded: LoadedModel,
    cache: VisionCache | None,
    data_args: DataArguments,
    training_args: FinetuneArguments,
) -> tuple[ConversationDataset, DatasetCheck]:
    """Return the training set, and what is known of its rows.

    Args:
        run: names the data sets.
        loaded: the model, whose tokenizer and sizes count.
        cache: where features of images are kept.
        data_args: how rows become samples.
        training_args: the seed.
    """
    with training_args.main_process_first(desc="checking the data"):  # the others find its results cached
        dataset = ConversationDataset(
            run.specs,
            loaded.tokenizer,
            render_settings(data_args, loaded.model.config),
            seed=training_args.seed,
            on_bad_sample="skip",  # the trainer ends on it, or counts it, as --on_bad_sample says
            vision_cache=cache,
        )
        return dataset, check_with_cache(dataset)


def trainer_arguments(
    run: Run, loaded: LoadedModel, data_args: DataArguments, training_args: FinetuneArguments
) -> dict[str, Any]:
    """Return the arguments of a trainer that do not depend on what it trains with: model, output, evaluation, faults.

    Args:
        run: its output folder and what it starts from.
        loaded: the model.
        data_args: of the data.
        training_args: of the training.
    """
    return {
        "model": loaded.model,
        "args": training_args,
        "output": OutputFolder(
            run.folder.path,
            base=source_of(run.start),
            tokenizer=loaded.tokenizer,
            save_full_model=training_args.save_full_model,
        ),
        "evaluator": make_evaluator(loaded, data_args, training_args),
        "on_bad_sample": data_args.on_bad_sample,
        "max_bad_fraction": data_args.max_bad_fraction,
        "on_nan": training_args.on_nan,
    }


def finish_run(trainer: FinetuneTrainer, run: Run, model_args: ModelArguments, report: dict) -> None:
    """Train to the end, or to a signal, and write the result with ``report``.

    Args:
        trainer: ready to train.
        run: its output folder, and where it goes on.
        model_args: what of the memory plan is given.
        report: what data_report.json says of the data.

    Raises:
        UserError: the machine does not have what is asked for, or the training cannot go on.
    """
    args = trainer.args
    plan = _prepare_device(trainer, model_args)
    stop = StopOnSignal()
    trainer.remove_callback(PrinterCallback)
    page = RunPage(run.folder.path, rows_per_step=rows_per_step(args), plan=plan, evaluator=trainer.evaluator)
    for callback in (stop, *callbacks(args), page):
        trainer.add_callback(callback)
    if args.should_save:
        run.folder.begin(run.resume)
    result = train(trainer, run.resume)
    if stop.caught:
        logger.warning("Stopped at step %d. The same command continues from there.", trainer.state.global_step)
        sys.exit(128 + stop.caught)
    _save_result(trainer, result, report)
    leave_ranks()


def _prepare_device(trainer: FinetuneTrainer, model_args: ModelArguments) -> MemoryPlan:
    """Make the training fit its machine: layers that recompute activations, data workers that find room.

    Returns:
        The memory plan.

    Raises:
        UserError: the flags ask for what the machine does not have.
    """
    args, plan = trainer.args, trainer.plan
    if args.fsdp and not trainer.is_fsdp_enabled:
        raise UserError(
            "--fsdp: accelerate shards weights on GPUs only, and would leave them whole here. Remove the flag, or set "
            "DEEPSPEED=shell/deepspeed/zero_stage3_config.json."
        )
    largest = plan.largest_micro_batch(args)
    zero = args.hf_deepspeed_config.config.get("zero_optimization", {}) if args.deepspeed else {}
    stage = zero.get("stage", 0)
    memory = plan_memory(
        trainer.model,
        largest,
        dtype=training_dtype(args),
        device=args.device,
        shards=args.world_size if stage else 1,
        shard_weights=stage == 3,
        bucket_elements=sum(zero.get(name, 0) for name in BUCKETS if isinstance(zero.get(name), int)),
        recompute=model_args.grad_checkpoint.lower(),
    )
    logger.info("Memory plan: %s", memory)
    recompute_activations(trainer.model, memory.num_recomputed)
    fit_workers(
        args,
        batch_bytes=largest.tiles * 3 * trainer.model.config.image_size**2,
        # Images travel one by one where their features are cached.
        batch_tensors=BATCH_TENSORS + (largest.tiles if trainer.vision_cache else 0),
        processes=int(os.environ.get("LOCAL_WORLD_SIZE") or 1),
    )
    return memory


def callbacks(training_args: FinetuneArguments) -> list[TrainerCallback]:
    """Return what follows a training and what ends it early, as the flags say."""
    chosen = [ProgressLine(rows_per_step(training_args)), PeakMemory(), Heartbeat()]
    for every in {training_args.eval_caption_steps, training_args.eval_answer_steps} - {0}:
        chosen.append(AnswerSteps(every))
    if training_args.early_stopping_patience:
        chosen.append(EarlyStoppingCallback(training_args.early_stopping_patience))
    return chosen


def rows_per_step(training_args: FinetuneArguments) -> int:
    """Return how many rows an optimizer step takes, over all ranks."""
    return training_args.train_batch_size * training_args.gradient_accumulation_steps * training_args.world_size


def train(trainer: FinetuneTrainer, resume: ResumePoint) -> TrainOutput:
    """Train from where an earlier run stopped; what another rank does wrong is said with its name."""
    args = trainer.args
    logger.info(
        "Training: %d rows per step = %d per device × %d accumulation steps × %d processes, in %s",
        rows_per_step(args),
        args.train_batch_size,
        args.gradient_accumulation_steps,
        args.world_size,
        "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
    )
    with logging_redirect_tqdm():  # messages come between the states of the progress line, not behind it
        try:
            return trainer.train(resume_from_checkpoint=str(resume.checkpoint) if resume.checkpoint else None)
        except RuntimeError as error:
            raise_lost_batch(error)
            # Also how it ends when another process died, or did not answer within --ddp_timeout.
            if distributed.is_initialized() and (behind := describe_stragglers()):
                logger.error("%s. Its log is in %s.", behind, Path(args.output_dir) / "training_log.txt")
            raise


def _save_result(trainer: FinetuneTrainer, result: TrainOutput, report: dict) -> None:
    """Evaluate the trained model where that is due, and write it with ``report`` and the loss curve."""
    args, state = trainer.args, trainer.state
    evaluated = {entry["step"] for entry in state.log_history if "eval_loss" in entry}
    if trainer.evaluator and state.global_step not in evaluated and not args.load_best_model_at_end:
        trainer.evaluate()
    skipped = trainer.skipped.gather()
    with atomic_output(Path(args.output_dir), is_main_process=args.should_save, last=FINISHED) as folder:
        trainer.save_model(str(folder))
        if args.should_save:
            write_json(folder / REPORT, {**report, "skipped": skipped, "skipped_steps": trainer.skipped.steps})
            trainer.output.draw_loss(folder, state.log_history)
            state.save_to_json(str(folder / FINISHED))
    for reason in sorted({row["reason"] for row in skipped})[:SHOWN_SKIPPED]:
        logger.warning("Was skipped: %s", reason)
    logger.info(
        "Done: %d steps, mean loss %.4f, %.1f samples/s. %d rows were skipped. The result is in %s",
        result.global_step,
        result.training_loss,
        result.metrics["train_samples_per_second"],
        len(skipped),
        args.output_dir,
    )


def open_vision_cache(
    model: InternVLChatModel, data_args: DataArguments, training_args: FinetuneArguments
) -> VisionCache | None:
    """Return the folder of --vision_cache; None without.

    Raises:
        UserError: it cannot be written, or not be used with ZeRO-3 or FSDP.
    """
    if not data_args.vision_cache:
        return None
    if shards_parameters(training_args):
        raise UserError(
            "--vision_cache: with ZeRO-3 and FSDP no process has the vision encoder whole. Use ZeRO-1 or -2, or "
            "remove the flag."
        )
    return VisionCache(data_args.vision_cache, model, max_bytes=round(data_args.vision_cache_gb * 1e9))


if __name__ == "__main__":
    main()
