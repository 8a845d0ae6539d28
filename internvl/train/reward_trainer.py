"""The trainer of a training on the score: a finetune's, whose micro-batches are drawn from the model itself."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from internvl.data.batch import Batch, Collator
from internvl.distributed import gather_lists
from internvl.model.internvl_chat.conversation import (
    ADDED_SPECIAL_TOKENS,
    RENAMED_SPECIAL_TOKENS,
    get_conv_template,
)
from internvl.model.vision_cache import image_features
from internvl.reward.answer_sampling import Policy, SampledAnswer, sample_answers
from internvl.reward.objective import StartWeights, advantages, log_probs, make_batch
from internvl.reward.prompts import Prompt, PromptBatch, collate_prompts
from internvl.reward.rewards import Answers, WeightedReward
from internvl.train.reward_arguments import RewardArguments
from internvl.train.trainer import FinetuneTrainer

# What people write in answers is not among them: boxes and references.
WRITTEN = {"<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"}


def suppressed_tokens(tokenizer, end_id: int) -> torch.Tensor:
    """Return the tokens that no answer may hold, int64 (K,): all special ones but boxes and ``end_id``."""
    names = {*ADDED_SPECIAL_TOKENS, *RENAMED_SPECIAL_TOKENS, *tokenizer.all_special_tokens} - WRITTEN
    vocabulary = tokenizer.get_vocab()
    return torch.tensor(sorted({vocabulary[name] for name in names if name in vocabulary} - {end_id}))


class RewardTrainer(FinetuneTrainer):
    """Trains an InternVL-Chat model on what its own answers are worth.

    Each optimizer step draws ``num_samples`` answers about every image of the step, with the weights as they are then,
    and takes one step along the policy gradient (``internvl.reward.objective``).
    """

    def __init__(
        self, *args, reward: WeightedReward, reward_args: RewardArguments, tokenizer, collate: Collator, **kw
    ):
        super().__init__(*args, data_collator=collate_prompts, **kw)
        self.reward = reward
        self.reward_args = reward_args
        self.tokenizer = tokenizer
        self.collate = collate
        end_mark = get_conv_template(self.chat_model.config.template).end_mark
        self.end_id = tokenizer.convert_tokens_to_ids(end_mark)
        suppressed = suppressed_tokens(tokenizer, self.end_id).to(self.args.device)
        self.policy = Policy(reward_args.sample_temperature, suppressed)
        self.start = StartWeights(self.model) if reward_args.kl else None
        self.measured: list[dict[str, float]] = []  # of each prompt since the last log

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return self.draw(batches), torch.ones((), device=device)

    def draw(self, batches: Sequence[PromptBatch]) -> list[Batch]:
        """Return the micro-batches of a step: answers drawn now, weighted by their advantages."""
        model, args = self.chat_model, self.reward_args
        was_training = self.model.training
        self.model.eval()
        with self.accelerator.autocast():
            drawn = [self._sample(model, batch.prompts) for batch in batches]
            rewards = [self._score(model, *pair) for pair in zip(batches, drawn, strict=True)]
        self.model.train(was_training)
        counts = [[len(batch.prompts), sum(map(_reference_tokens, batch.prompts))] for batch in batches]
        num_prompts, num_reference_tokens = np.array(gather_lists(counts)).reshape(-1, 2).sum(0).tolist()
        num_samples = max(1, num_prompts) * args.num_samples
        made = []
        for batch, answers, of_batch in zip(batches, drawn, rewards, strict=True):
            weights = advantages(of_batch, args.advantage) / num_samples if batch.prompts else of_batch
            reference_weight = args.ce_mix / max(1, num_reference_tokens)
            made.append(self._batch(batch, answers, weights, reference_weight))
        return made

    def _batch(
        self, batch: PromptBatch, answers: list[list[SampledAnswer]], weights: np.ndarray, reference_weight: float
    ) -> Batch:
        if not batch.prompts:  # of padding, without labels: all ranks must take the same number of steps
            made = self.collate([batch.skipped])
        else:
            made = make_batch(batch.prompts, answers, weights, self.collate, reference_weight=reference_weight)
        made.is_idle = batch.is_idle
        return made

    def _sample(self, model, prompts: list[Prompt]) -> list[list[SampledAnswer]]:
        if not prompts:
            return []
        return sample_answers(
            model,
            prompts,
            self.policy,
            num_samples=self.reward_args.num_samples,
            max_new_tokens=self.reward_args.sample_max_new_tokens,
            end_id=self.end_id,
            pad_id=self.tokenizer.pad_token_id,
            seed=self.args.seed,
            cache=self.vision_cache,
        )

    def _score(self, model, batch: PromptBatch, drawn: list[list[SampledAnswer]]) -> np.ndarray:
        """Return what each answer is worth, less what it diverges from the start; float64 (prompts, answers)."""
        if not batch.prompts:
            return np.zeros((0, self.reward_args.num_samples))
        sampled = [self._answers(*pair) for pair in zip(batch.prompts, drawn, strict=True)]
        rewards, parts = self.reward(sampled)
        divergence = self._divergence(model, batch.prompts, drawn) if self.start else np.zeros_like(rewards)
        for row, answers in enumerate(drawn):
            self.measured.append(
                {
                    "reward": float(rewards[row].mean()),
                    "reward_spread": float(rewards[row].std()),
                    "answer_tokens": float(np.mean([len(answer.ids) for answer in answers])),
                    "ended": float(np.mean([answer.ended for answer in answers])),
                    **({"kl": float(divergence[row].mean())} if self.start else {}),
                    **(
                        {f"reward/{name}": float(values[row].mean()) for name, values in parts.items()}
                        if len(parts) > 1
                        else {}
                    ),
                }
            )
        return rewards - self.reward_args.kl * divergence

    def _answers(self, prompt: Prompt, drawn: list[SampledAnswer]) -> Answers:
        ids = [answer.ids[:-1] if answer.ended else answer.ids for answer in drawn]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=False)
        return Answers(
            prompt.key,
            prompt.references,
            tuple(text.strip() for text in texts),
            tuple(answer.ended for answer in drawn),
        )

    def _divergence(self, model, prompts: list[Prompt], drawn: list[list[SampledAnswer]]) -> np.ndarray:
        """Return log p − log p of the start, of each answer, in nats; its mean over answers estimates their KL."""
        assert self.start is not None
        ones = np.ones((len(prompts), self.reward_args.num_samples))
        batch = make_batch(prompts, drawn, ones, replace(self.collate, keep_images=True)).to(self.args.device)
        assert batch.images is not None
        features = image_features(model, batch.images, self.vision_cache)
        with self.start.in_place():
            before = log_probs(model, batch, features, self.policy).double().cpu().numpy()
        now = np.concatenate([answer.log_probs for answers in drawn for answer in answers])
        lengths = [len(answer.ids) for answers in drawn for answer in answers]
        sums = np.add.reduceat(now - before, np.cumsum([0, *lengths[:-1]]))
        return sums.reshape(len(prompts), -1)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs |= self.policy.forward_arguments()
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            measured, self.measured = gather_lists(self.measured), []
            for name in measured[0] if measured else ():
                logs[name] = round(float(np.mean([one[name] for one in measured])), 4)
        super().log(logs, start_time)


def _reference_tokens(prompt: Prompt) -> int:
    return sum(map(len, prompt.reference_ids))
