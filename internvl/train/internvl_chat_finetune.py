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
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from torch import distributed
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import EarlyStoppingCallback, set_seed
from transformers.trainer_callback import PrinterCallback

from internvl.data.check_cache import check_with_cache
from internvl.data.checking import LONG, DatasetCheck
from internvl.data.collate import Collator
from internvl.data.dataset import ConversationDataset
from internvl.data.meta import read_meta
from internvl.errors import UserError, ends_on_user_error
from internvl.evaluation.java_scorers import check_scorers
from internvl.json_files import write_json
from internvl.logging_utils import setup_logging
from internvl.model.adapter import describe_trainable
from internvl.model.checkpoint import Checkpoint
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.loading import LoadedModel
from internvl.model.vision_cache import VisionCache
from internvl.train.arguments import DataArguments, FinetuneArguments, ModelArguments, parse_arguments
from internvl.train.checkpointing import staged_result
from internvl.train.data_workers import fit_workers, raise_lost_batch
from internvl.train.evaluation import CaptionSteps, Evaluator, read_caption_sample
from internvl.train.interruption import Heartbeat, StopOnSignal, describe_laggards, limit_waiting
from internvl.train.loading import load_for_training, render_settings, training_dtype
from internvl.train.memory import MemoryPlan, MicroBatch, PeakMemory, plan_memory, recompute_activations
from internvl.train.output import OutputFolder, make_record
from internvl.train.progress import ProgressLine
from internvl.train.rows import choose_rows, choose_units, data_report
from internvl.train.run_record import FINISHED, RECORD, base_identity, clear, describe_data, find_resume_point
from internvl.train.sharding import divides_weights
from internvl.train.trainer import FinetuneTrainer

logger = logging.getLogger("internvl.train")
PLANNED_STEPS = 200  # whose micro-batches the memory plan looks at
BATCH_TENSORS = 8  # ids, labels, mask, pixels, flags, and some that packing adds
SHOWN_SKIPPED = 10  # in the final summary; data_report.json lists all


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Parse → load → check the data → train → save."""
    setup_logging()
    model_args, data_args, training_args = parse_arguments(sys.argv[1:] if argv is None else argv)
    limit_waiting(training_args.ddp_timeout)
    set_seed(training_args.seed)
    specs = read_meta(data_args.meta_path)  # before the model: a typing mistake should not cost minutes
    base = Checkpoint(model_args.model_name_or_path)
    record = make_record(
        *(model_args, data_args, training_args),
        processes=training_args.world_size,
        data=describe_data(specs),
        base=base_identity(base.weight_files),
    )
    resume = find_resume_point(
        training_args.output_dir,
        record,
        overwrite=training_args.overwrite_output_dir,
        named=training_args.resume_from_checkpoint,
    )
    if resume.finished:
        logger.info(
            "%s: this training is finished, so nothing is done. --overwrite_output_dir True trains anew.",
            training_args.output_dir,
        )
        return
    if resume.checkpoint:
        logger.info("Continuing from %s (--overwrite_output_dir True starts anew).", resume.checkpoint)
    loaded = load_for_training(model_args, data_args, training_args)
    cache = open_vision_cache(loaded.model, data_args, training_args)
    dataset = ConversationDataset(
        specs,
        loaded.tokenizer,
        render_settings(data_args, loaded.model.config),
        seed=training_args.seed,
        on_bad_sample="skip",  # the trainer judges what comes of it
        vision_cache=cache,
    )
    with training_args.main_process_first(desc="checking the data"):  # the others find its result kept
        check = check_with_cache(dataset)
    lengths = choose_rows(dataset, check, data_args, model_args)
    units = choose_units(dataset, check, lengths, data_args, training_args)
    evaluator = make_evaluator(loaded, data_args, training_args)
    logger.info("Model: %s", describe_trainable(loaded.model))
    output = OutputFolder(
        training_args.output_dir,
        base=base,
        tokenizer=loaded.tokenizer,
        lora_dropout=model_args.lora_dropout,
        save_full_model=training_args.save_full_model,
    )
    trainer = FinetuneTrainer(
        model=loaded.model,
        args=training_args,
        train_dataset=dataset,
        data_collator=Collator(
            loaded.tokenizer.pad_token_id,
            loaded.model.config.image_size,
            packed=data_args.packing or data_args.share_image_prefix,
            keep_images=cache is not None,
            name_rows=True,
        ),
        output=output,
        evaluator=evaluator,
        units=units,
        # What the longest rows would fill, so that packing takes no more memory.
        capacity=training_args.train_batch_size * max(lengths) if data_args.packing else None,
        vision_cache=cache,
        on_bad_sample=data_args.on_bad_sample,
        max_bad_fraction=data_args.max_bad_fraction,
        on_nan=training_args.on_nan,
    )
    if training_args.fsdp and not trainer.is_fsdp_enabled:
        raise UserError(
            "--fsdp: accelerate divides weights on GPUs only, and would leave them whole here. Leave it away, or set "
            "DEEPSPEED=shell/deepspeed/zero_stage3_config.json."
        )
    plan = plan_training(trainer, check, model_args, data_args)
    logger.info("Memory plan: %s", plan)
    recompute_activations(loaded.model, plan.num_recomputed)
    tiles = int(check.facts(dataset.index)["tiles"].max()) * training_args.train_batch_size
    fit_workers(
        training_args,
        batch_bytes=tiles * 3 * loaded.model.config.image_size**2,
        # Images travel one by one where their features are kept.
        batch_tensors=BATCH_TENSORS + (tiles if cache is not None else 0),
        processes=int(os.environ.get("LOCAL_WORLD_SIZE") or 1),
    )
    rows_per_step = (
        training_args.train_batch_size * training_args.gradient_accumulation_steps * training_args.world_size
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ProgressLine(rows_per_step))
    trainer.add_callback(PeakMemory())
    stop = StopOnSignal()
    trainer.add_callback(stop)
    trainer.add_callback(Heartbeat())
    if training_args.eval_caption_steps:
        trainer.add_callback(CaptionSteps(training_args.eval_caption_steps))
    if training_args.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(training_args.early_stopping_patience))
    if training_args.should_save:
        if not resume.checkpoint:
            clear(training_args.output_dir)
        write_json(output.folder / RECORD, record)
    logger.info(
        "Training: %d rows per step = %d per device × %d accumulation steps × %d processes, in %s",
        rows_per_step,
        training_args.train_batch_size,
        training_args.gradient_accumulation_steps,
        training_args.world_size,
        "bf16" if training_args.bf16 else "fp16" if training_args.fp16 else "fp32",
    )
    with logging_redirect_tqdm():  # messages come between the states of the progress line, not behind it
        try:
            result = trainer.train(resume_from_checkpoint=str(resume.checkpoint) if resume.checkpoint else None)
        except RuntimeError as error:
            raise_lost_batch(error)
            # Also how it ends when another process died, or did not answer within --ddp_timeout.
            if distributed.is_initialized() and (behind := describe_laggards()):
                logger.error("%s. Its log is in %s.", behind, output.folder / "training_log.txt")
            raise
    if stop.caught:
        logger.warning("Stopped at step %d. The same command continues from there.", trainer.state.global_step)
        sys.exit(128 + stop.caught)
    evaluated = {entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry}
    if evaluator and trainer.state.global_step not in evaluated and not training_args.load_best_model_at_end:
        trainer.evaluate()
    skipped = trainer.skipped.gather(training_args)
    with staged_result(output.folder, main=training_args.should_save, last=FINISHED) as folder:
        trainer.save_model(str(folder))
        if training_args.should_save:
            report = data_report(specs, check, lengths, skipped, trainer.skipped.steps)
            write_json(folder / "data_report.json", report)
            output.draw_loss(folder, trainer.state.log_history)
            trainer.state.save_to_json(str(folder / FINISHED))
    for reason in sorted({row["reason"] for row in skipped})[:SHOWN_SKIPPED]:
        logger.warning("Was skipped: %s", reason)
    logger.info(
        "Done: %d steps, mean loss %.4f, %.1f samples/s. %d rows were skipped. The result is in %s",
        result.global_step,
        result.training_loss,
        result.metrics["train_samples_per_second"],
        len(skipped),
        training_args.output_dir,
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
    if divides_weights(training_args):
        raise UserError(
            "--vision_cache: with ZeRO-3 and FSDP no process has the vision encoder whole. Use ZeRO-1 or -2, or leave "
            "it away."
        )
    return VisionCache(data_args.vision_cache, model, max_bytes=round(data_args.vision_cache_gb * 1e9))


def plan_training(
    trainer: FinetuneTrainer, check: DatasetCheck, model_args: ModelArguments, data_args: DataArguments
) -> MemoryPlan:
    """Plan the memory of the largest micro-batch that comes up in the first steps, or may at worst."""
    args, sampler, facts = trainer.args, trainer.make_sampler(), check.facts(trainer.train_dataset.index)
    if trainer.data_collator.packed:
        steps = sampler.steps()[:PLANNED_STEPS]
        tokens = max(sum(sampler.costs[unit] for unit in batch) for step in steps for batch in sampler.deal(step))
        tokens = max(tokens, max(sampler.costs))
    else:
        tokens = args.train_batch_size * max(check.lengths(trainer.train_dataset.index))
    stage = args.hf_deepspeed_config.config.get("zero_optimization", {}).get("stage", 0) if args.deepspeed else 0
    return plan_memory(
        trainer.model,
        MicroBatch(tokens=tokens, tiles=int(facts["tiles"].max()) * args.train_batch_size),
        dtype=training_dtype(args),
        lora_dropout=model_args.lora_dropout,
        device=args.device,
        shards=args.world_size if stage else 1,
        shard_weights=stage == 3,
        recompute=model_args.grad_checkpoint.lower(),
    )


def make_evaluator(
    loaded: LoadedModel, data_args: DataArguments, training_args: FinetuneArguments
) -> Evaluator | None:
    """Return what measures the model on the rows of --eval_meta_path, which are checked; None without.

    Raises:
        UserError: rows are not in order, or captions cannot be made or scored here.
    """
    if not training_args.eval_meta_path:
        return None
    config = loaded.model.config
    # Held-out rows are not augmented: a loss is to be compared with the one before.
    specs = [replace(spec, data_augment=False) for spec in read_meta(training_args.eval_meta_path)]
    settings = render_settings(data_args, config)
    dataset = ConversationDataset(specs, loaded.tokenizer, settings, seed=training_args.seed, on_bad_sample="skip")
    with training_args.main_process_first(desc="checking the held-out data"):
        check = check_with_cache(dataset)
    check.raise_errors("Nothing was trained. These are rows of --eval_meta_path.")
    dataset.keep(check.facts(dataset.index)["status"] != LONG)
    if len(dataset) == 0:
        raise UserError(f"{training_args.eval_meta_path}: all rows are longer than --max_seq_length. Raise it.")
    captions = None
    if training_args.eval_caption_steps:
        if divides_weights(training_args):
            raise UserError(
                "--eval_caption_steps: with ZeRO-3 and FSDP no process has the weights to answer with. Use ZeRO-1 or "
                "-2, or leave it away."
            )
        check_scorers()
        captions = read_caption_sample(
            training_args.eval_meta_path,
            training_args.eval_caption_samples,
            training_args.seed,
            allow_outside_root=data_args.allow_outside_root,
        )
    return Evaluator(
        dataset,
        Collator(loaded.tokenizer.pad_token_id, config.image_size),
        loaded.tokenizer,
        batch_size=training_args.per_device_eval_batch_size,
        captions=captions,
        caption_steps=training_args.eval_caption_steps,
        max_tiles=data_args.max_dynamic_patch if data_args.dynamic_image_size else 1,
        num_frames=data_args.min_num_frame,
    )


if __name__ == "__main__":
    main()
