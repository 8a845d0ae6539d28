"""Answers drawn from a model: each prompt is read once, and all its answers go on from there.

Axis letters: P prompts, N answers of each, M tokens of the longest prompt and of the answers so far, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from internvl.model.internvl_chat.causal_lm import policy_logits
from internvl.model.internvl_chat.compat import CACHE_NAME
from internvl.model.internvl_chat.conversation import ADDED_SPECIAL_TOKENS, RENAMED_SPECIAL_TOKENS
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.vision_cache import VisionCache, image_features
from internvl.reward.prompts import Prompt
from internvl.reward.rewards import Answers

# What people write in answers is not among them: boxes and references.
WRITTEN = {"<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"}


class Policy(NamedTuple):
    """The distribution that answers are drawn from: logits over ``temperature``, without the ``suppressed`` tokens.

    ``suppressed`` is int64 (K,), or None: no answer may hold them, and the others' probabilities add up to 1.
    """

    temperature: float
    suppressed: torch.Tensor | None = None

    def forward_arguments(self) -> dict:
        """Return the arguments of the model's forward with which its loss is of this distribution."""
        return {"loss_temperature": self.temperature, "loss_suppressed": self.suppressed}


def make_policy(tokenizer, end_mark: str, temperature: float, device: torch.device) -> tuple[Policy, int]:
    """Return the distribution of answers in a conversation, and the token that ends one.

    Args:
        tokenizer: the model's.
        end_mark: of the conversation template.
        temperature: what logits are divided by.
        device: the model's.
    """
    end_id = tokenizer.convert_tokens_to_ids(end_mark)
    return Policy(temperature, suppressed_tokens(tokenizer, end_id).to(device)), end_id


class SampledAnswer(NamedTuple):
    """Token ids of an answer, with its end mark where it came to its end, and the log-probability of each."""

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    ended: bool


@torch.no_grad()
def sample_answers(
    model: InternVLChatModel,
    prompts: Sequence[Prompt],
    policy: Policy,
    *,
    num_samples: int,
    max_new_tokens: int,
    end_id: int,
    pad_id: int,
    seed: int,
    cache: VisionCache | None = None,
) -> list[list[SampledAnswer]]:
    """Return ``num_samples`` answers of each prompt, drawn token by token from ``policy``'s distribution.

    What is drawn depends on the seed, the prompt and its epoch alone: not on the rank or on which prompts share a
    batch.

    Args:
        model: in evaluation mode; answers are to be of the weights that train, without dropout.
        prompts: P of them, with their images.
        policy: temperature and suppressed tokens, on the model's device.
        num_samples: N.
        max_new_tokens: an answer that is this long has not come to its end.
        end_id: the token that ends an answer.
        pad_id: stands where a prompt is shorter than others.
        seed: of the training.
        cache: where features of images are kept.
    """
    device = model.device
    rows = [prompt.input_ids for prompt in prompts]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad_id, padding_side="left").to(device)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left").to(device)
    features = image_features(model, [image for prompt in prompts for image in prompt.images], cache)
    kept = model.read_prompts(model.embed(ids, features), mask)
    kept.batch_repeat_interleave(num_samples)
    mask = mask.repeat_interleave(num_samples, dim=0)
    token = ids[:, -1:].repeat_interleave(num_samples, dim=0)
    draws = torch.from_numpy(_uniform(prompts, num_samples, max_new_tokens, seed)).to(device)
    open_rows = torch.ones(len(token), dtype=torch.bool, device=device)
    drawn_ids, drawn_log_probs = [], []
    for step in range(max_new_tokens):
        outputs = model.language_model(
            input_ids=token,
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            use_cache=True,
            logits_to_keep=1,
            **{CACHE_NAME: kept},
        )
        kept = getattr(outputs, CACHE_NAME)
        scores = policy_logits(outputs.logits[:, -1], *policy).log_softmax(-1)
        token = _draw(scores, draws[:, step])[:, None]
        drawn_ids.append(token[:, 0])
        drawn_log_probs.append(scores.gather(1, token)[:, 0])
        open_rows = open_rows & (token[:, 0] != end_id)
        if not open_rows.any():
            break
        mask = torch.cat([mask, torch.ones_like(token)], dim=1)
    all_ids, all_log_probs = torch.stack(drawn_ids, 1).tolist(), torch.stack(drawn_log_probs, 1).tolist()
    answers = [_answer(*row, end_id=end_id) for row in zip(all_ids, all_log_probs, strict=True)]
    return [answers[start : start + num_samples] for start in range(0, len(answers), num_samples)]


def suppressed_tokens(tokenizer, end_id: int) -> torch.Tensor:
    """Return the tokens that no answer may hold, int64 (K,): all special ones but boxes and ``end_id``."""
    names = {*ADDED_SPECIAL_TOKENS, *RENAMED_SPECIAL_TOKENS, *tokenizer.all_special_tokens} - WRITTEN
    vocabulary = tokenizer.get_vocab()
    return torch.tensor(sorted({vocabulary[name] for name in names if name in vocabulary} - {end_id}))


def as_answers(prompt: Prompt, drawn: Sequence[SampledAnswer], tokenizer) -> Answers:
    """Return a prompt's answers as rewards take them: their texts, without end mark and blanks at the ends."""
    ids = [answer.ids[:-1] if answer.ended else answer.ids for answer in drawn]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=False)
    return Answers(
        prompt.key,
        prompt.references,
        tuple(text.strip() for text in texts),
        tuple(answer.ended for answer in drawn),
    )


def _draw(scores: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return a token of each row, int64 (rows,): where the cumulative probability passes a number from [0, 1)."""
    cumulative = scores.double().exp().cumsum(-1)
    chosen = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
    return chosen.clamp(max=scores.shape[-1] - 1)


def _uniform(prompts: Sequence[Prompt], num_samples: int, length: int, seed: int) -> np.ndarray:
    """Return numbers from [0, 1), float64 (P · N, length), from a generator of each prompt's own."""
    return np.concatenate(
        [np.random.default_rng([seed, prompt.epoch, prompt.key]).random((num_samples, length)) for prompt in prompts]
    )


def _answer(ids: list[int], log_probs: list[float], end_id: int) -> SampledAnswer:
    ended = end_id in ids
    length = ids.index(end_id) + 1 if ended else len(ids)
    return SampledAnswer(tuple(ids[:length]), tuple(log_probs[:length]), ended)
