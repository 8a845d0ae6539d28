"""The trainer of answers that are weighted by how they compare: those of a reward or of a preference."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from internvl.data.batch import Batch, Collator
from internvl.distributed import gather_lists
from internvl.model.vision_cache import image_features
from internvl.reward.answer_sampling import Policy, SampledAnswer
from internvl.reward.objective import StartWeights, log_probs, make_batch
from internvl.reward.prompts import Prompt, PromptBatch, collate_prompts
from internvl.train.trainer import FinetuneTrainer


class WeightedAnswers(NamedTuple):
    """Answers of each prompt of a micro-batch, and what each answer's cross-entropy counts, float64 (P, N).

    ``reference_weight`` is what each token of a prompt's references counts, 0 for none of them. ``loss`` is the
    micro-batch's share of what is minimised, where the weights are for its gradient alone.
    """

    answers: Sequence[Sequence[SampledAnswer]]
    weights: np.ndarray
    reference_weight: float = 0.0
    loss: float | None = None


class AnswerTrainer(FinetuneTrainer):
    """A finetune's trainer, whose micro-batches are prompts with several answers each, weighted for every step anew.

    ``policy`` is the distribution that the answers' probabilities are of; ``keeps_start``: they are compared with
    those of the weights at the start.
    """

    policy: Policy

    def __init__(self, *args, collate: Collator, keeps_start: bool, **kw):
        super().__init__(*args, data_collator=collate_prompts, **kw)
        self.collate = collate
        self.start = StartWeights(self.model) if keeps_start else None
        self.measured: list[dict[str, float]] = []  # of each prompt since the last log

    @abstractmethod
    def weigh(self, batches: Sequence[PromptBatch]) -> list[WeightedAnswers]:
        """Return the answers of each micro-batch of a step; called in evaluation mode, on all processes alike."""

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        with self._looking():
            weighted = self.weigh(batches)
        made = [self._batch(*pair) for pair in zip(batches, weighted, strict=True)]
        return made, torch.ones((), device=device)

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Let the model be in evaluation mode, and of the training's precision, in the block."""
        was_training = self.model.training
        self.model.eval()
        with self.accelerator.autocast():
            yield
        self.model.train(was_training)

    def _batch(self, batch: PromptBatch, weighted: WeightedAnswers) -> Batch:
        if not batch.prompts:  # of padding, without labels: all ranks must take the same number of steps
            made = self.collate([batch.skipped])
        else:
            answers, weights, reference_weight, _ = weighted
            made = make_batch(batch.prompts, answers, weights, self.collate, reference_weight=reference_weight)
        made.logged_loss = weighted.loss
        made.is_idle = batch.is_idle
        return made

    def answer_log_probs(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[SampledAnswer]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return log p of each answer now and with the weights of the start, in nats, both float64 (P, N).

        An answer that brings the log-probabilities of its tokens is not read again with the weights as they are.
        """
        assert self.start is not None
        ones = np.ones((len(prompts), len(answers[0])))
        batch = make_batch(prompts, answers, ones, replace(self.collate, keep_images=True)).to(self.args.device)
        assert batch.images is not None
        features = image_features(self.chat_model, batch.images, self.vision_cache)
        drawn = [answer for of_prompt in answers for answer in of_prompt]
        if all(answer.log_probs for answer in drawn):
            now = np.concatenate([answer.log_probs for answer in drawn])
        else:
            now = self._log_probs(batch, features)
        with self.start.in_place():
            before = self._log_probs(batch, features)
        firsts = np.cumsum([0, *(len(answer.ids) for answer in drawn[:-1])])
        return np.add.reduceat(now, firsts).reshape(ones.shape), np.add.reduceat(before, firsts).reshape(ones.shape)

    def _log_probs(self, batch: Batch, features: torch.Tensor | None) -> np.ndarray:
        return log_probs(self.chat_model, batch, features, self.policy).double().cpu().numpy()

    def training_step(self, model, batch: Batch, num_items_in_batch=None):
        loss = super().training_step(model, batch, num_items_in_batch)
        if batch.logged_loss is None:
            return loss
        return loss.new_tensor(batch.logged_loss * self.args.world_size)  # the mean over processes is logged

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs |= self.policy.forward_arguments()
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            measured, self.measured = gather_lists(self.measured), []
            for name in measured[0] if measured else ():
                logs[name] = round(float(np.mean([one[name] for one in measured])), 4)
        super().log(logs, start_time)
