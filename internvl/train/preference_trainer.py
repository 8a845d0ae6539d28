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
        pairs = [[self.pair(prompt) for prompt in batch.prompts] for batch in batches]
        lengths = [len(pair[CHOSEN].ids) for of_batch in pairs for pair in of_batch]
        counts = np.array(gather_lists([[len(lengths), sum(lengths)]])).sum(0).clip(1)
        return [
            WeightedAnswers(of_batch, self.weights(batch.prompts, of_batch, *counts.tolist()))
            for batch, of_batch in zip(batches, pairs, strict=True)
        ]

    def weights(
        self, prompts: Sequence[Prompt], pairs: Sequence[Sequence[SampledAnswer]], num_pairs: int, num_tokens: int
    ) -> np.ndarray:
        """Return what each answer's cross-entropy counts, float64 (P, 2).

        Args:
            prompts: of a micro-batch, maybe none.
            pairs: the two answers of each.
            num_pairs: of the step, on all processes.
            num_tokens: of all its chosen answers.
        """
        if not pairs:
            return np.zeros((0, 2))
        now, before = self.answer_log_probs(prompts, pairs)
        losses, weights = preference_loss(now - before, self.parts, self.beta)
        # The supervised part is a mean over tokens: here each pair's share of it, for a mean over pairs.
        losses -= self.parts.supervised * now[:, CHOSEN] * num_pairs / num_tokens
        for loss, (chosen, rejected) in zip(losses, self.beta * (now - before), strict=True):
            self.measured.append(
                {
                    "loss": float(loss),
                    "reward_chosen": float(chosen),
                    "reward_rejected": float(rejected),
                    "reward_margin": float(chosen - rejected),
                    "reward_accuracy": float(chosen > rejected),
                }
            )
        weights /= num_pairs
        weights[:, CHOSEN] += self.parts.supervised / num_tokens
        return weights

    @staticmethod
    def pair(prompt: Prompt) -> tuple[SampledAnswer, SampledAnswer]:
        """Return the chosen and the rejected answer of a prompt, whose references they are."""
        chosen, rejected = prompt.reference_ids
        return SampledAnswer(chosen, (), True), SampledAnswer(rejected, (), True)
