"""The policy gradient as a weighted loss: each sampled answer's cross-entropy times its advantage.

The expected reward's gradient is the mean over samples of advantage · gradient of log p (REINFORCE, Williams 1992).
With the cross-entropy −log p of every token and the advantage as its weight, that is the gradient of the weighted loss
which a finetune has anyway, and all answers about an image share its tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from internvl.data.batch import Batch, Collator, Sample
from internvl.data.grouping import share_prefixes
from internvl.data.tokenize import RenderedRow
from internvl.model.internvl_chat.causal_lm import IGNORE_INDEX, LOSS_CHUNK
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.reward.answer_sampling import Policy, SampledAnswer
from internvl.reward.prompts import Prompt

ADVANTAGES = ("leave-one-out", "standardized")


def advantages(rewards: np.ndarray, kind: str) -> np.ndarray:
    """Return how much better each answer is than its prompt's others, float64 as ``rewards`` (prompts, answers).

    "leave-one-out": the reward less the mean of the other answers' (RLOO, arXiv:2402.14740; new self-critical,
    arXiv:2003.09971), which keeps the gradient unbiased. "standardized": the reward less the mean of all, over their
    standard deviation (GRPO, arXiv:2402.03300); biased, and of one size for every prompt.
    """
    count = rewards.shape[1]
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    if kind == "leave-one-out":
        return centred * count / (count - 1)
    spread = rewards.std(axis=1, keepdims=True)
    return centred / np.where(spread > 1e-6, spread, np.inf)  # all alike: nothing to prefer


def make_batch(
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[SampledAnswer]],
    weights: np.ndarray,
    collate: Collator,
    *,
    reference_weight: float = 0.0,
) -> Batch:
    """Return the batch whose weighted loss, with a divisor of 1, has the policy gradient.

    Args:
        prompts: P of them.
        answers: N sampled ones of each.
        weights: float (P, N), what each answer's cross-entropy is multiplied with: its advantage over the number
            of all samples of the step.
        collate: of one sequence for each prompt.
        reference_weight: what each token of a reference counts, 0 for none of them: the supervised part of the loss.
    """
    samples = []
    for prompt, sampled, of_prompt in zip(prompts, answers, weights.tolist(), strict=True):
        ids = prompt.input_ids.tolist()
        rows = [_row(ids, list(answer.ids), weight) for answer, weight in zip(sampled, of_prompt, strict=True)]
        if reference_weight:
            rows += [_row(ids, list(reference), reference_weight) for reference in prompt.reference_ids]
        shared = share_prefixes(rows)
        samples.append(Sample.of(shared, list(prompt.images), [prompt.where]))
    return collate(samples)


def _row(prompt: list[int], answer: list[int], weight: float) -> RenderedRow:
    return RenderedRow(
        prompt + answer, [IGNORE_INDEX] * len(prompt) + answer, [0.0] * len(prompt) + [weight] * len(answer)
    )


@torch.no_grad()
def log_probs(model: InternVLChatModel, batch: Batch, features: torch.Tensor | None, policy: Policy) -> torch.Tensor:
    """Return the log-probability of every supervised token of a packed batch, float32 (K,), in their order."""
    inputs, language_model = batch.model_inputs(features), model.language_model
    states = language_model.run_decoder(
        inputs_embeds=model.embed(inputs["input_ids"], inputs.get("visual_features")),
        layout=inputs["layout"],
        use_cache=False,
    ).last_hidden_state
    targets = inputs["labels"][:, 1:]
    supervised = targets != IGNORE_INDEX
    states, targets = states[:, :-1][supervised], targets[supervised]
    parts = zip(states.split(LOSS_CHUNK), targets.split(LOSS_CHUNK), strict=True)
    return -torch.cat([language_model.token_losses(*part, *policy) for part in parts])


class StartWeights:
    """What trains, as it was at the start: the policy that answers are kept near to, without a second model."""

    def __init__(self, model: nn.Module):
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.values = [parameter.detach().clone() for parameter in self.trained]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the weights of the start in the block."""
        now = [parameter.data for parameter in self.trained]
        try:
            for parameter, value in zip(self.trained, self.values, strict=True):
                parameter.data = value
            yield
        finally:
            for parameter, value in zip(self.trained, now, strict=True):
                parameter.data = value
