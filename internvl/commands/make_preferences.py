"""Make preference pairs from a model's own answers: the best and the worst of several, by a score.

    python tools/make_preferences.py log/habitat/lora_annots_1 shell/data/habitat.json --out pairs
    MODEL=log/habitat/lora_annots_1 META_PATH=pairs/meta.json bash shell/internvl2.0/habitat_2b_finetune/dpo.sh

Rows that differ in their answer alone are one question with several references. Each question is read once, and
--num-samples answers are drawn: the best of them by --score becomes the row's answer, the worst its "rejected" one.
Questions whose answers are all worth the same are left out and counted. Scores are the rewards of cider.sh
(docs/reward.md). The same command continues where an earlier one was stopped; torchrun starts it on several devices.

Any data flag of the finetune script may be given (--max_dynamic_patch, --allow_outside_root, …); tiles are by default
those that the model was trained with.
"""

import argparse
import json
import logging
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from internvl.cli import Parser
from internvl.data.check_cache import check_with_cache
from internvl.data.conversion import write_lines
from internvl.data.dataset import ConversationDataset
from internvl.data.meta import read_meta
from internvl.data.sampling import SampleGroup
from internvl.distributed import barrier, join_ranks, leave_ranks, rank_and_world_size, shard
from internvl.errors import UserError, ends_on_user_error
from internvl.evaluation.answers import AnswerLog
from internvl.inference.engine import Engine
from internvl.json_files import write_json
from internvl.logging_utils import setup_logging
from internvl.model.atomic_folder import atomic_folder, check_free
from internvl.model.checkpoint import Checkpoint
from internvl.progress import Progress
from internvl.reward.answer_sampling import as_answers, make_policy, sample_answers
from internvl.reward.pair_making import Pair, choose_pair, pair_row
from internvl.reward.prompts import Prompt, PromptBatch, PromptDataset, collate_prompts
from internvl.reward.rewards import RewardSpec, WeightedReward
from internvl.train.arguments import ModelArguments, parse_data_arguments
from internvl.train.epoch_plan import choose_rows, refuse_weights
from internvl.train.setup import check_against_config, render_settings

logger = logging.getLogger("internvl.preferences")
# What the answers do not depend on, or depend on by its content.
RESULT_ALIKE = {"model", "meta", "out", "overwrite", "batch_size", "min_gap"}
FROM_CONFIG = ("dynamic_image_size", "use_thumbnail", "min_dynamic_patch", "max_dynamic_patch")


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("model", type=Path, metavar="MODEL", help="base, merged model or adapter")
    parser.add_argument("meta", type=Path, metavar="META", help="meta file of rows with reference answers")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="gets rows and a meta file")
    parser.add_argument("--num-samples", type=int, default=8, metavar="N", help="answers drawn (default %(default)s)")
    parser.add_argument(
        "--score", nargs="+", default=["CIDEr-D"], metavar="NAME[:WEIGHT]", help="what an answer is worth"
    )
    parser.add_argument(
        "--min-gap", type=float, default=0.0, help="the best must be worth more by this (default %(default)s)"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="of drawing (default %(default)s)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=60, metavar="N", help="of an answer (default %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="questions at once")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N questions")
    parser.add_argument("--seed", type=int, default=42, help="of drawing (default %(default)s)")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    parser.add_argument("--overwrite", action="store_true", help="replace FOLDER if it is there")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse values that could not work.

    Raises:
        UserError: names the flag.
    """
    for flag, least in (("num_samples", 2), ("max_new_tokens", 1), ("batch_size", 1), ("limit", 1)):
        value = getattr(args, flag)
        if value is not None and value < least:
            raise UserError(f"--{flag.replace('_', '-')}: is {value}. Give {least} or more.")
    if not 0 < args.temperature <= 10:
        raise UserError(f"--temperature: is {args.temperature}. Give a number above 0, such as 1.0.")
    if not 0 <= args.min_gap < float("inf"):
        raise UserError(f"--min-gap: is {args.min_gap}. Give a number from 0.")
    check_free(args.out, overwrite=args.overwrite)


def open_prompts(args: argparse.Namespace, engine: Engine, flags: list[str]) -> PromptDataset:
    """Return the questions of the meta file, with images as the model was trained on them.

    Raises:
        UserError: rows cannot be trained on, or have weights.
    """
    config = engine.model.config
    tiles = [word for name in FROM_CONFIG for word in (f"--{name}", str(getattr(config, name)))]
    data_args = parse_data_arguments(["--meta_path", str(args.meta), *tiles, *flags])
    model_args = ModelArguments(str(args.model))
    check_against_config(model_args, data_args, config)
    dataset = ConversationDataset(
        read_meta(args.meta), engine.tokenizer, render_settings(data_args, config), seed=args.seed
    )
    check = check_with_cache(dataset)
    choose_rows(dataset, check, data_args, model_args, uses_rejected=True)  # a pair's own is replaced
    refuse_weights(dataset, check.row_stats(dataset.index), data_args)
    return PromptDataset(dataset)


def make_pairs(args: argparse.Namespace, engine: Engine, prompts: PromptDataset, log: AnswerLog) -> None:
    """Draw and score answers to the questions that are not in the log yet, and add the pairs to it, batch by batch."""
    model, tokenizer = engine.model.eval(), engine.tokenizer
    policy, end_id = make_policy(tokenizer, engine.template.end_mark, args.temperature, model.device)
    reward = WeightedReward([RewardSpec.parse(text) for text in args.score], dict(enumerate(prompts.references)))
    left = [key for key in range(min(len(prompts), args.limit or len(prompts))) if key not in log.done]
    own = list(shard(left, *rank_and_world_size()))
    loader: DataLoader = DataLoader(
        prompts,  # type: ignore[arg-type]
        batch_sampler=[
            [SampleGroup((key,), 0) for key in own[start : start + args.batch_size]]
            for start in range(0, len(own), args.batch_size)
        ],
        collate_fn=collate_prompts,
    )

    def pairs_of(read: list[Prompt]) -> dict[int | str, str]:
        drawn = sample_answers(
            model,
            read,
            policy,
            num_samples=args.num_samples,
            max_new_tokens=args.max_new_tokens,
            end_id=end_id,
            pad_id=tokenizer.pad_token_id,
            seed=args.seed,
        )
        answers = [as_answers(*one, tokenizer) for one in zip(read, drawn, strict=True)]
        scores, _ = reward(answers)
        pairs = [choose_pair(*one) for one in zip(answers, scores.tolist(), strict=True)]
        return {
            prompt.key: json.dumps(pair and [pair.chosen, pair.rejected, pair.scores])
            for prompt, pair in zip(read, pairs, strict=True)
        }

    batch: PromptBatch
    with Progress(total=len(own), desc="Drawing", unit=" questions", disable=rank_and_world_size()[0] > 0) as bar:
        for batch in loader:
            log.add(pairs_of(batch.prompts))
            bar.update(len(batch.prompts))


def write(args: argparse.Namespace, prompts: PromptDataset, done: dict[int | str, str]) -> tuple[int, np.ndarray]:
    """Write the pairs of each data set and a meta file; return how many, and their mean scores, float64 (2,)."""
    data, scores = prompts.data, []
    with atomic_folder(args.out) as partial:
        entries = {}
        for number, spec in enumerate(data.specs, 1):
            files, rows = set(data.file_numbers(spec)), []
            for key, text in sorted((int(key), text) for key, text in done.items()):
                file, position = data.index[prompts.items[key]].tolist()
                found = json.loads(text)
                if file not in files or found is None or (pair := Pair(*found)).gap < args.min_gap:
                    continue
                annotation = data.files[file][1]
                row = pair_row(annotation.line(position), pair, annotation.where(position))
                if row is not None:
                    rows.append(row)
            if not rows:
                logger.warning("%s: no question of it has answers that are worth more and less.", spec.name)
                continue
            name = f"set{number}.jsonl"
            write_lines(partial / name, rows)
            scores += [row["scores"] for row in rows]
            entries[spec.name] = spec.as_entry([args.out / name], len(rows)) | {
                "repeat_time": max(1, spec.repeat_time)
            }
        if not entries:
            raise UserError(
                f"{args.meta}: no question has answers that are worth more and less. Raise --num-samples or "
                "--temperature, or lower --min-gap."
            )
        write_json(partial / "meta.json", entries)
    return len(scores), np.mean(scores, axis=0)


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    args, flags = make_parser().parse_known_args(argv)
    setup_logging()
    check_arguments(args)
    first = join_ranks()
    checkpoint = Checkpoint(args.model)
    engine = Engine.load(checkpoint, precision=args.precision)
    prompts = open_prompts(args, engine, flags)
    settings = {
        "checkpoint_sha256": checkpoint.sha256(), "rows": [file.sha256() for _, file in prompts.data.files],
        "flags": flags, **{name: str(value) for name, value in vars(args).items() if name not in RESULT_ALIKE},
    }  # fmt: skip
    args.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    log = AnswerLog(args.out.absolute().parent, settings, rank=rank_and_world_size()[0])
    barrier()  # all share out the same rest
    if log.done:
        logger.info("Continuing: %d questions are done already.", len(log.done))
    make_pairs(args, engine, prompts, log)
    log.close()
    barrier()
    if first:
        log = AnswerLog(args.out.absolute().parent, settings)
        count, (best, worst) = write(args, prompts, log.done)
        log.remove()
        print(
            f"{count:,} pairs of {len(log.done):,} questions; the chosen answers are worth {best:.3f} on average, the "
            f"rejected {worst:.3f}. Wrote {args.out}/meta.json"
        )
    leave_ranks()
