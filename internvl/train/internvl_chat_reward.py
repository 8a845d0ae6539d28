"""Train an InternVL-Chat model on the score of its own answers: the script that torchrun starts on every process.

    torchrun --nproc_per_node=1 internvl/train/internvl_chat_reward.py \\
        --model_name_or_path log/habitat/lora_annots_1 --meta_path shell/data/habitat.json \\
        --output_dir log/habitat/cider --freeze_llm True --freeze_mlp True --freeze_backbone True --use_llm_lora 128 \\
        --lora_dropout 0.0 --reward CIDEr-D:1.0

Usually called by a launcher (``cider.sh``, ``…_lora_cider.sh``), which sets these flags. ``--help`` lists all of them:
those of a finetune, and those of ``internvl/train/reward_arguments.py``.
"""

import logging
import sys

import numpy as np
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback

from internvl.data.batch import Collator
from internvl.data.check_cache import check_with_cache
from internvl.data.checking import DatasetCheck
from internvl.data.dataset import ConversationDataset
from internvl.data.grouping import single_rows
from internvl.data.meta import read_meta
from internvl.data.sampling import choose_strategy
from internvl.device import choose_kernels
from internvl.distributed import leave_ranks
from internvl.errors import UserError, ends_on_user_error
from internvl.logging_utils import setup_logging
from internvl.model.adapter import describe_trainable
from internvl.model.checkpoint import Checkpoint
from internvl.model.loading import source_of
from internvl.reward.prompts import PromptDataset
from internvl.reward.rewards import WeightedReward
from internvl.train.epoch_plan import EpochPlan, data_report
from internvl.train.internvl_chat_finetune import (
    callbacks,
    make_evaluator,
    open_vision_cache,
    prepare_device,
    save_result,
    train,
)
from internvl.train.interruption import StopOnSignal, limit_waiting
from internvl.train.output import OutputFolder
from internvl.train.reward_arguments import RewardArguments, parse_reward_arguments
from internvl.train.reward_trainer import RewardTrainer
from internvl.train.run_folder import RunFolder, base_identity, describe_data, make_record
from internvl.train.setup import load_for_training, render_settings

logger = logging.getLogger("internvl.train")


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Parse → load → check the data → draw, score and train → save."""
    setup_logging()
    arguments = parse_reward_arguments(sys.argv[1:] if argv is None else argv)
    model_args, data_args, training_args, reward_args = arguments
    limit_waiting(training_args.ddp_timeout)
    choose_kernels()
    set_seed(training_args.seed)
    specs = read_meta(data_args.meta_path)
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
        return
    if resume.checkpoint:
        logger.info("Continuing from %s (--overwrite_output_dir True starts anew).", resume.checkpoint)
    loaded = load_for_training(model_args, data_args, training_args)
    cache = open_vision_cache(loaded.model, data_args, training_args)
    with training_args.main_process_first(desc="checking the data"):
        dataset = ConversationDataset(
            specs,
            loaded.tokenizer,
            render_settings(data_args, loaded.model.config),
            seed=training_args.seed,
            on_bad_sample="skip",
            vision_cache=cache,
        )
        check = check_with_cache(dataset)
    prompts, plan = plan_prompts(dataset, check, data_args.meta_path, reward_args)
    logger.info("Model: %s", describe_trainable(loaded.model))
    collate = Collator(
        loaded.tokenizer.pad_token_id, loaded.model.config.image_size, packed=True, keep_images=bool(cache)
    )
    trainer = RewardTrainer(
        model=loaded.model,
        args=training_args,
        train_dataset=prompts,
        plan=plan,
        output=OutputFolder(
            folder.path,
            base=source_of(start),
            tokenizer=loaded.tokenizer,
            save_full_model=training_args.save_full_model,
        ),
        evaluator=make_evaluator(loaded, data_args, training_args),
        vision_cache=cache,
        on_bad_sample=data_args.on_bad_sample,
        max_bad_fraction=data_args.max_bad_fraction,
        on_nan=training_args.on_nan,
        reward=WeightedReward(reward_args.specs(), dict(enumerate(prompts.references))),
        reward_args=reward_args,
        tokenizer=loaded.tokenizer,
        collate=collate,
    )
    prepare_device(trainer, model_args)
    stop = StopOnSignal()
    trainer.remove_callback(PrinterCallback)
    for callback in (stop, *callbacks(training_args)):
        trainer.add_callback(callback)
    if training_args.should_save:
        folder.begin(resume)
    result = train(trainer, resume)
    if stop.caught:
        logger.warning("Stopped at step %d. The same command continues from there.", trainer.state.global_step)
        sys.exit(128 + stop.caught)
    save_result(trainer, result, data_report(specs, check, plan.lengths))
    leave_ranks()


def plan_prompts(
    dataset: ConversationDataset, check: DatasetCheck, meta_path: str, reward_args: RewardArguments
) -> tuple[PromptDataset, EpochPlan]:
    """Return the questions of the rows that can be trained on, and the plan of an epoch of them.

    Raises:
        UserError: rows cannot be trained on, none is left, or rows have weights.
    """
    check.raise_errors("Nothing was trained.")
    dataset.filter(check.trains(dataset.index))
    if len(dataset) == 0:
        raise UserError(f"{meta_path}: no row is left. Raise --max_seq_length, or the weights.")
    row_stats = check.row_stats(dataset.index)
    if row_stats["weighted"].any() or any(spec.balance for spec in dataset.specs):
        raise UserError(
            f"{meta_path}: has weights or a balance, which say what answers of people count; here the reward says "
            "what an answer counts. Remove them."
        )
    prompts = PromptDataset(dataset)
    longest = reward_args.num_samples * reward_args.sample_max_new_tokens
    if reward_args.ce_mix:
        longest += int(row_stats["text_tokens"].max()) * max(map(len, prompts.references))
    lengths = check.lengths(dataset.index)[prompts.items] + longest
    groups = single_rows(lengths)
    logger.info(
        "Data: %s rows, %s prompts with %.1f references each; %d answers drawn for each",
        f"{len(dataset):,}",
        f"{len(prompts):,}",
        np.mean([len(references) for references in prompts.references]),
        reward_args.num_samples,
    )
    plan = EpochPlan(
        groups=groups,
        strategy=choose_strategy(groups.groups, None),
        lengths=lengths,
        max_tiles=int(row_stats["tiles"].max()),
        packed=True,
    )
    return prompts, plan


if __name__ == "__main__":
    main()
