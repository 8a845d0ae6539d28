"""The trainer of a training on the score: draws answers from the model, and weights them by what they are worth."""

from collections.abc import Sequence

import numpy as np

from internvl.distributed import gather_lists
from internvl.model.internvl_chat.conversation import get_conv_template
from internvl.reward.answer_sampling import SampledAnswer, as_answers, make_policy, sample_answers
from internvl.reward.objective import advantages
from internvl.reward.prompts import Prompt, PromptBatch
from internvl.reward.rewards import WeightedReward
from internvl.train.answer_trainer import AnswerTrainer, WeightedAnswers
from internvl.train.reward_arguments import RewardArguments


class RewardTrainer(AnswerTrainer):
    """Trains an InternVL-Chat model on what its own answers are worth.

    Each optimizer step draws ``num_samples`` answers about every image of the step, with the weights as they are then,
    and takes one step along the policy gradient (``internvl.reward.objective``).
    """

    def __init__(self, *args, reward: WeightedReward, reward_args: RewardArguments, tokenizer, **kw):
        super().__init__(*args, keeps_start=bool(reward_args.kl), **kw)
        self.reward = reward
        self.reward_args = reward_args
        self.tokenizer = tokenizer
        end_mark = get_conv_template(self.chat_model.config.template).end_mark
        temperature = reward_args.sample_temperature
        self.policy, self.end_id = make_policy(tokenizer, end_mark, temperature, self.args.device)

    def weigh(self, batches: Sequence[PromptBatch]) -> list[WeightedAnswers]:
        args = self.reward_args
        drawn = [self._sample(batch.prompts) for batch in batches]
        rewards = [self._score(*pair) for pair in zip(batches, drawn, strict=True)]
        counts = [[len(batch.prompts), sum(map(_reference_tokens, batch.prompts))] for batch in batches]
        num_prompts, num_reference_tokens = np.array(gather_lists(counts)).reshape(-1, 2).sum(0).tolist()
        num_samples = max(1, num_prompts) * args.num_samples
        reference_weight = args.ce_mix / max(1, num_reference_tokens)
        weights = [advantages(of_batch, args.advantage) / num_samples for of_batch in rewards]
        return [WeightedAnswers(*pair, reference_weight) for pair in zip(drawn, weights, strict=True)]

    def _sample(self, prompts: list[Prompt]) -> list[list[SampledAnswer]]:
        if not prompts:
            return []
        return sample_answers(
            self.chat_model,
            prompts,
            self.policy,
            num_samples=self.reward_args.num_samples,
            max_new_tokens=self.reward_args.sample_max_new_tokens,
            end_id=self.end_id,
            pad_id=self.tokenizer.pad_token_id,
            seed=self.args.seed,
            cache=self.vision_cache,
        )

    def _score(self, batch: PromptBatch, drawn: list[list[SampledAnswer]]) -> np.ndarray:
        """Return what each answer is worth, less what it diverges from the start; float64 (prompts, answers)."""
        if not batch.prompts:
            return np.zeros((0, self.reward_args.num_samples))
        sampled = [as_answers(*pair, self.tokenizer) for pair in zip(batch.prompts, drawn, strict=True)]
        rewards, parts = self.reward(sampled)
        divergence = np.zeros_like(rewards)  # log p − log p of the start: its mean over answers estimates their KL
        if self.start:
            now, before = self.answer_log_probs(batch.prompts, drawn)
            divergence = now - before
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


def _reference_tokens(prompt: Prompt) -> int:
    return sum(map(len, prompt.reference_ids))
