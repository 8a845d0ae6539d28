"""Evaluation during training: the loss on rows held out, and CIDEr of captions of a sample of them."""

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

from internvl.data.batch import BadSample, Batch, SampleResult
from internvl.data.dataset import ConversationDataset
from internvl.distributed import rank_and_world_size
from internvl.evaluation.answers import AnswerLog
from internvl.evaluation.datasets import CaptionSet, read_train_sets
from internvl.evaluation.generation import generate_captions
from internvl.evaluation.java_scorers import tokenize_sides
from internvl.evaluation.questions import check_media
from internvl.evaluation.scorers import score_cider
from internvl.inference.engine import Engine
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.train.sharding import equal_calls

logger = logging.getLogger(__name__)


class CaptionSteps(TrainerCallback):
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
        captions: CaptionSet | None,
        caption_steps: int,
        max_tiles: int,
        num_frames: int,
    ):
        self.dataset = dataset
        self.collator = collator
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.captions = captions
        self.sizes = check_media(captions.questions) if captions else {}
        self.caption_steps = caption_steps
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

    def cider(self, model: InternVLChatModel) -> float:
        """Return CIDEr of the sample's captions, greedy."""
        assert self.captions is not None, "asked for by --eval_caption_steps alone, which reads them"
        engine = Engine(model, self.tokenizer, max_tiles=self.max_tiles)
        with TemporaryDirectory() as folder:
            log = AnswerLog(Path(folder), {}, rank=rank_and_world_size()[0])
            predictions = generate_captions(
                engine,
                self.captions,
                self.sizes,
                log,
                batch_size=self.batch_size,
                num_frames=self.num_frames,
                quiet=True,
                do_sample=False,
                min_new_tokens=self.captions.min_new_tokens,
                max_new_tokens=self.captions.max_new_tokens,
            )
            log.close()
        answers = {entry["image_id"]: entry["caption"] for entry in predictions}
        references = self.captions.references()
        self.samples = [
            SampleAnswer(
                one.id,
                one.turns[-1].value,
                next(iter(one.images), None),
                references[one.id][0],
                answers[one.id],
            )
            for one in self.captions.questions
        ]
        return score_cider(*tokenize_sides(references, answers)).corpus[0]
