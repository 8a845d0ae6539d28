"""Evaluation during training: the loss on rows held out, and CIDEr or accuracy of answers to a sample of them."""

import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast, TrainerCallback

from internvl.data.batch import BadSample, Batch, Collator, SampleResult
from internvl.data.check_cache import check_with_cache
from internvl.data.dataset import ConversationDataset
from internvl.data.meta import read_meta
from internvl.distributed import rank_and_world_size
from internvl.errors import UserError
from internvl.evaluation.answer_scores import check_references, score_answers
from internvl.evaluation.answers import AnswerLog
from internvl.evaluation.datasets import CaptionSet, read_train_sets
from internvl.evaluation.generation import generate_captions
from internvl.evaluation.java_scorers import check_scorers, tokenize_sides
from internvl.evaluation.matching import Match
from internvl.evaluation.questions import check_media
from internvl.evaluation.scorers import score_cider
from internvl.inference.engine import Engine
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.loading import LoadedModel
from internvl.train.arguments import DataArguments, FinetuneArguments
from internvl.train.setup import render_settings
from internvl.train.sharding import equal_calls, shards_parameters

logger = logging.getLogger(__name__)
ANSWER_SCORES = ("accuracy", "macro_F1")


class AnswerSteps(TrainerCallback):
    """Asks for an evaluation every ``every`` steps."""

    def __init__(self, every: int):
        self.every = every

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            control.should_evaluate = True


def read_caption_sample(meta_path: str, size: int, seed: int, *, allow_outside_root: bool) -> CaptionSet:
    """Return questions drawn from the rows of a meta file.

    Args:
        meta_path: the meta file.
        size: number of questions.
        seed: the same draws the same ones.
        allow_outside_root: whether paths of images may lead out of their root.

    Raises:
        UserError: rows are not as they should be.
    """
    sets = read_train_sets(Path(meta_path), allow_outside_root=allow_outside_root)
    questions, references = [], []
    for data in sets:
        by_id = data.references()
        for question in data.questions:
            questions.append(replace(question, id=len(questions) + 1))
            references.append(by_id[question.id])
    drawn = sorted(random.Random(seed).sample(range(len(questions)), min(size, len(questions))))
    chosen = [questions[index] for index in drawn]
    annotations = [
        {"image_id": questions[index].id, "caption": caption} for index in drawn for caption in references[index]
    ]
    truth = {"images": [{"id": question.id} for question in chosen], "annotations": annotations}
    return replace(sets[0], name="sample", questions=chosen, ground_truth=truth)


@dataclass(frozen=True)
class SampleAnswer:
    """A question of the sample, with its first image, what a person says, and what the model said."""

    id: int | str
    question: str
    image: Path | None
    reference: str
    answer: str


NO_ROW: list[BadSample] = []


class Share(Dataset):
    """One rank's rows, every ``world_size``-th; where the division leaves it one less, ``NO_ROW`` makes up for it."""

    def __init__(self, dataset: ConversationDataset, rank: int, world_size: int):
        self.dataset, self.rank, self.world_size = dataset, rank, world_size

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.world_size)

    def __getitem__(self, number: int) -> SampleResult:
        index = self.rank + number * self.world_size
        return self.dataset[index] if index < len(self.dataset) else NO_ROW


class Evaluator:
    """Measures a model while it trains; every process calls it at the same steps.

    Nothing of it draws from the random numbers of the training, so that a run with and one without it train alike.
    """

    def __init__(
        self,
        dataset: ConversationDataset,
        collator,
        tokenizer: PreTrainedTokenizerFast,
        *,
        batch_size: int,
        sample: CaptionSet | None,
        caption_steps: int,
        answer_steps: int,
        match: Match | None,
        max_tiles: int,
        num_frames: int,
    ):
        self.dataset = dataset
        self.collator = collator
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.sample = sample
        self.sizes = check_media(sample.questions) if sample else {}
        self.caption_steps = caption_steps
        self.answer_steps = answer_steps
        self.match = match
        self.max_tiles = max_tiles
        self.num_frames = num_frames
        self.samples: list[SampleAnswer] = []  # of the last evaluation with answers

    def batches(self, rank: int, world_size: int) -> Iterator[Batch]:
        """Yield this process's share of the rows in batches; all processes get the same number of batches.

        A row that has become unreadable is left out with a warning, as in training.
        """
        loader = DataLoader(
            Share(self.dataset, rank, world_size),
            batch_size=self.batch_size,
            collate_fn=self.collator,
            generator=torch.Generator(),  # or it would take a number from that of the training
        )
        for batch in loader:
            for bad in batch.skipped:
                logger.warning("Left out of the evaluation: %s", bad.reason)
            yield batch

    @torch.no_grad()
    def loss(self, model: torch.nn.Module, device: torch.device, *, sharded: bool = False) -> float:
        """Return the mean loss over all supervised tokens of all rows, by their weights, in nats.

        Args:
            model: as training calls it.
            device: where it is.
            sharded: whether no rank has all weights (ZeRO-3, FSDP).
        """
        rank, world_size = rank_and_world_size()
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        for batch in self.batches(rank, world_size):
            batch = batch.to(device)
            inputs = batch.model_inputs()
            if sharded:
                inputs |= equal_calls(inputs["labels"], inputs.get("pixel_values"))
            output = model(**inputs, num_items_in_batch=1, return_logits=False, use_cache=False)
            sums += torch.stack([output.loss.double(), batch.supervised_weight.double()])
        if world_size > 1:
            distributed.all_reduce(sums)
        return (sums[0] / sums[1]).item()

    def due(self, step: int, last: int) -> tuple[bool, bool]:
        """Return whether, at ``step`` of ``last``, captions are scored by CIDEr, and answers by being right."""

        def is_due(every: int) -> bool:
            return bool(every) and (step % every == 0 or step >= last)

        return is_due(self.caption_steps), is_due(self.answer_steps)

    def answer_scores(self, model: InternVLChatModel, *, captions: bool, answers: bool) -> dict[str, float]:
        """Answer the sample's questions, greedily, and return the scores by the name they are logged under.

        Args:
            model: without the wraps of a training.
            captions: whether CIDEr is wanted.
            answers: whether accuracy and macro-F1 are, by --eval_match.
        """
        assert self.sample is not None, "asked for by the flags that read it"
        predictions = self._answer(model, self.sample)
        said = {entry["image_id"]: entry["caption"] for entry in predictions}
        references = self.sample.references()
        self.samples = [
            SampleAnswer(
                one.id,
                one.turns[-1].value,
                next(iter(one.images), None),
                references[one.id][0],
                said[one.id],
            )
            for one in self.sample.questions
        ]
        scores = {}
        if captions:
            scores["eval_CIDEr"] = score_cider(*tokenize_sides(references, said)).corpus[0]
        if answers:
            assert self.match is not None, "--eval_answer_steps is refused without --eval_match"
            measured = score_answers(predictions, references, self.match).corpus
            scores |= {f"eval_{name}": measured[name] for name in ANSWER_SCORES if name in measured}
        return scores

    def _answer(self, model: InternVLChatModel, sample: CaptionSet) -> list[dict]:
        """Return the answers of a set, as predictions.json has them."""
        engine = Engine(model, self.tokenizer, max_tiles=self.max_tiles)
        with TemporaryDirectory() as folder:
            log = AnswerLog(Path(folder), {}, rank=rank_and_world_size()[0])
            predictions = generate_captions(
                engine,
                sample,
                self.sizes,
                log,
                batch_size=self.batch_size,
                num_frames=self.num_frames,
                quiet=True,
                do_sample=False,
                min_new_tokens=sample.min_new_tokens,
                max_new_tokens=sample.max_new_tokens,
            )
            log.close()
        return predictions


def make_evaluator(
    loaded: LoadedModel, data_args: DataArguments, training_args: FinetuneArguments
) -> Evaluator | None:
    """Return what measures the model on the rows of --eval_meta_path, which are checked; None without.

    Raises:
        UserError: rows are not in order, or answers cannot be made or scored here.
    """
    if not training_args.eval_meta_path:
        return None
    config = loaded.model.config
    # Held-out rows are not augmented, nor balanced: a loss is to be compared with the one before.
    specs = [replace(spec, data_augment=False, balance=None) for spec in read_meta(training_args.eval_meta_path)]
    settings = render_settings(data_args, config)
    dataset = ConversationDataset(specs, loaded.tokenizer, settings, seed=training_args.seed, on_bad_sample="skip")
    with training_args.main_process_first(desc="checking the held-out data"):
        check = check_with_cache(dataset)
    check.raise_errors("Nothing was trained. These are rows of --eval_meta_path.")
    dataset.filter(check.trains(dataset.index))
    if len(dataset) == 0:
        raise UserError(
            f"{training_args.eval_meta_path}: all rows are longer than --max_seq_length, or of weight 0. Raise it, or "
            "the weights."
        )
    return Evaluator(
        dataset,
        Collator(loaded.tokenizer.pad_token_id, config.image_size),
        loaded.tokenizer,
        batch_size=training_args.per_device_eval_batch_size,
        sample=_read_sample(data_args, training_args),
        caption_steps=training_args.eval_caption_steps,
        answer_steps=training_args.eval_answer_steps,
        match=_match(training_args),
        max_tiles=data_args.max_dynamic_patch if data_args.dynamic_image_size else 1,
        num_frames=data_args.min_num_frame,
    )


def _read_sample(data_args: DataArguments, training_args: FinetuneArguments) -> CaptionSet | None:
    """Return the questions that are answered during training; None where none are. Errors as of its caller."""
    flags = [name for name in ("eval_caption_steps", "eval_answer_steps") if getattr(training_args, name)]
    meta, match = training_args.eval_meta_path, _match(training_args)
    if not flags or meta is None:
        return None
    if shards_parameters(training_args):
        raise UserError(
            f"--{flags[0]}: with ZeRO-3 and FSDP no process has the weights to answer with. Use ZeRO-1 or -2, or "
            "remove the flag."
        )
    sample = read_caption_sample(
        meta,
        training_args.eval_caption_samples,
        training_args.seed,
        allow_outside_root=data_args.allow_outside_root,
    )
    if training_args.eval_caption_steps:
        check_scorers()
    if match is not None:
        references = sample.references()
        check_references({one.id: references[one.id] for one in sample.questions}, match, meta, flag="--eval_match")
    return sample


def _match(training_args: FinetuneArguments) -> Match | None:
    return Match.parse(training_args.eval_match, "--eval_match") if training_args.eval_match else None
