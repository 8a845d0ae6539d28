"""Train an InternVL-Chat model on the score of its answers or on preferences: the script that torchrun starts.

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

from internvl.data.batch import Collator
from internvl.data.checking import DatasetCheck
from internvl.data.dataset import ConversationDataset
from internvl.data.grouping import single_rows
from internvl.data.sampling import choose_strategy
from internvl.errors import ends_on_user_error
from internvl.logging_utils import setup_logging
from internvl.model.trainable import describe_trainable
from internvl.reward.prompts import PreferenceDataset, PromptDataset
from internvl.reward.rewards import WeightedReward
from internvl.train.answer_trainer import AnswerTrainer
from internvl.train.arguments import DataArguments, ModelArguments
from internvl.train.epoch_plan import EpochPlan, choose_rows, data_report, refuse_weights
from internvl.train.internvl_chat_finetune import finish_run, open_data, open_run, open_vision_cache, trainer_arguments
from internvl.train.preference_trainer import PreferenceTrainer
from internvl.train.reward_arguments import RewardArguments, parse_reward_arguments
from internvl.train.reward_trainer import RewardTrainer
from internvl.train.setup import load_for_training

logger = logging.getLogger("internvl.train")


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Parse → load → check the data → draw, score and train → save."""
    setup_logging()
    arguments = parse_reward_arguments(sys.argv[1:] if argv is None else argv)
    model_args, data_args, training_args, reward_args = arguments
    run = open_run(arguments)
    if run.resume.finished:
        return
    loaded = load_for_training(model_args, data_args, training_args)
    cache = open_vision_cache(loaded.model, data_args, training_args)
    dataset, check = open_data(run, loaded, cache, data_args, training_args)
    logger.info("Model: %s", describe_trainable(loaded.model))
    parts = {
        "vision_cache": cache,
        "reward_args": reward_args,
        "collate": Collator(
            loaded.tokenizer.pad_token_id, loaded.model.config.image_size, packed=True, keep_images=bool(cache)
        ),
        **trainer_arguments(run, loaded, data_args, training_args),
    }
    trainer: AnswerTrainer
    record: dict[str, object] = {"objective": reward_args.objective}
    reward: WeightedReward | None = None
    if reward_args.has_preferences:
        pairs, plan = plan_pairs(dataset, check, model_args, data_args)
        trainer = PreferenceTrainer(train_dataset=pairs, plan=plan, **parts)
    else:
        prompts, plan = plan_prompts(dataset, check, model_args, data_args, reward_args)
        reward = WeightedReward(reward_args.specs(), dict(enumerate(prompts.references)))
        record["reward"] = reward.as_record()
        trainer = RewardTrainer(train_dataset=prompts, plan=plan, reward=reward, tokenizer=loaded.tokenizer, **parts)
    finish_run(trainer, run, model_args, data_report(run.specs, check, plan.lengths) | record)
    if reward is not None and training_args.should_save:
        reward.save(run.folder.path)


def plan_prompts(
    dataset: ConversationDataset,
    check: DatasetCheck,
    model_args: ModelArguments,
    data_args: DataArguments,
    reward_args: RewardArguments,
) -> tuple[PromptDataset, EpochPlan]:
    """Return the questions of the rows that can be trained on, and the plan of an epoch of them.

    Args:
        dataset: the training set; rows that are left out are filtered from it.
        check: what is known of its rows.
        model_args: names the model in messages.
        data_args: names the meta file in messages.
        reward_args: how many answers are drawn, and how long.

    Raises:
        UserError: rows cannot be trained on, none is left, or rows have weights.
    """
    lengths = choose_rows(dataset, check, data_args, model_args)
    row_stats = check.row_stats(dataset.index)
    refuse_weights(dataset, row_stats, data_args)
    prompts = PromptDataset(dataset)
    longest = reward_args.num_samples * reward_args.sample_max_new_tokens
    if reward_args.ce_mix:
        longest += int(row_stats["text_tokens"].max()) * max(map(len, prompts.references))
    lengths = lengths[prompts.items] + longest
    logger.info(
        "Prompts: %s with %.1f references each; %d answers are drawn for each",
        f"{len(prompts):,}",
        np.mean([len(references) for references in prompts.references]),
        reward_args.num_samples,
    )
    return prompts, _plan(lengths, row_stats)


def plan_pairs(
    dataset: ConversationDataset, check: DatasetCheck, model_args: ModelArguments, data_args: DataArguments
) -> tuple[PreferenceDataset, EpochPlan]:
    """Return the rows with their two answers, and the plan of an epoch of them; arguments as of ``plan_prompts``.

    Raises:
        UserError: rows cannot be trained on, none is left, one has no rejected answer, or rows have weights.
    """
    lengths = choose_rows(dataset, check, data_args, model_args, uses_rejected=True)
    row_stats = check.row_stats(dataset.index)
    refuse_weights(dataset, row_stats, data_args)
    pairs = PreferenceDataset(dataset, lengths)
    logger.info("Pairs: %s of a chosen and a rejected answer", f"{len(pairs):,}")
    return pairs, _plan(pairs.lengths, row_stats)


def _plan(lengths: np.ndarray, row_stats: np.ndarray) -> EpochPlan:
    """Return the plan of an epoch whose micro-batches hold prompts, each with its answers in one sequence."""
    groups = single_rows(lengths)
    return EpochPlan(
        groups=groups,
        strategy=choose_strategy(groups.groups, None),
        lengths=lengths,
        max_tiles=int(row_stats["tiles"].max()),
        packed=True,
    )


if __name__ == "__main__":
    main()
