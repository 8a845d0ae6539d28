"""The trainer of preferences: of two answers to a question, one is made likelier than the other (DPO, MPO)."""

from collections.abc import Sequence

import numpy as np

from internvl.distributed import gather_lists
from internvl.reward.answer_sampling import Policy, SampledAnswer
from internvl.reward.preference import CHOSEN, OBJECTIVES, preference_loss
from internvl.reward.prompts import Prompt, PromptBatch
from internvl.train.answer_trainer import AnswerTrainer, WeightedAnswers
from internvl.train.reward_arguments import RewardArguments


class PreferenceTrainer(AnswerTrainer):
    """Trains an InternVL-Chat model on pairs of a chosen and a rejected answer.

    Each optimizer step looks at the log-probabilities of its pairs, now and with the weights of the start, and takes
    one step along the gradient of the objective (``internvl.reward.preference``). The logged loss is the objective's.
    """

    plain_policy = Policy(temperature=1.0)

    def __init__(self, *args, reward_args: RewardArguments, **kw):
        super().__init__(*args, keeps_start=True, **kw)
        self.parts = OBJECTIVES[reward_args.objective]
        self.beta = reward_args.beta
        self.policy = self.plain_policy

    def weigh(self, batches: Sequence[PromptBatch]) -> list[WeightedAnswers]:
        lengths = [len(prompt.reference_ids[CHOSEN]) for batch in batches for prompt in batch.prompts]
        counts = np.array(gather_lists([[len(lengths), sum(lengths)]])).sum(0).clip(1)
        return [self.weighted(batch.prompts, *counts.tolist()) for batch in batches]

    def weighted(self, prompts: Sequence[Prompt], num_pairs: int, num_tokens: int) -> WeightedAnswers:
        """Return the two answers of each prompt, what their cross-entropies count, and their loss.

        Args:
            prompts: of a micro-batch, maybe none.
            num_pairs: of the step, on all processes.
            num_tokens: of all its chosen answers.
        """
        pairs = [_pair(prompt) for prompt in prompts]
        if not pairs:
            return WeightedAnswers(pairs, np.zeros((0, 2)))
        now, before = self.answer_log_probs(prompts, pairs)
        losses, weights = preference_loss(now - before, self.parts, self.beta)
        for chosen, rejected in (self.beta * (now - before)).tolist():
            self.measured.append(
                {
                    "reward_chosen": chosen,
                    "reward_rejected": rejected,
                    "reward_margin": chosen - rejected,
                    "reward_accuracy": float(chosen > rejected),
                }
            )
        weights /= num_pairs
        weights[:, CHOSEN] += self.parts.supervised / num_tokens
        supervised = -now[:, CHOSEN].sum() / num_tokens
        return WeightedAnswers(pairs, weights, loss=losses.sum() / num_pairs + self.parts.supervised * supervised)


def _pair(prompt: Prompt) -> tuple[SampledAnswer, SampledAnswer]:
    """Return the chosen and the rejected answer of a prompt, whose references they are."""
    chosen, rejected = prompt.reference_ids
    return SampledAnswer(chosen, (), True), SampledAnswer(rejected, (), True)
