"""Answers are drawn from the distribution that the loss is of: alone or in a batch, without suppressed tokens."""

import numpy as np
import pytest
import torch

from internvl.data.batch import Collator
from internvl.model.adapter import unwrapped
from internvl.model.internvl_chat.causal_lm import policy_logits
from internvl.reward.answer_sampling import sample_answers
from internvl.reward.objective import log_probs, make_batch
from tests.reward.conftest import MEMBERS


def draw(parts, prompts, num_samples=3, seed=5, max_new_tokens=12):
    model, tokenizer, _, policy, end_id = parts
    return sample_answers(
        unwrapped(model.eval()),
        prompts,
        policy,
        num_samples=num_samples,
        max_new_tokens=max_new_tokens,
        end_id=end_id,
        pad_id=tokenizer.pad_token_id,
        seed=seed,
    )


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_of_drawing_are_those_of_training(member, temperature, make_policy):
    parts = make_policy(member, temperature)
    model, tokenizer, prompts, policy, _ = parts
    answers = draw(parts, prompts)
    batch = make_batch(prompts, answers, np.ones((len(prompts), 3)), Collator(tokenizer.pad_token_id, 56, packed=True))
    own = unwrapped(model)
    features = own.extract_feature(batch.inputs.pop("pixel_values"))
    batch.images = []
    again = log_probs(own, batch, features, policy)
    drawn = [value for of_prompt in answers for answer in of_prompt for value in answer.log_probs]
    assert again.tolist() == pytest.approx(drawn, abs=2e-4)


def test_what_is_drawn_depends_on_seed_and_prompt_not_on_the_batch(make_policy):
    parts = make_policy()
    prompts = parts[2]
    together = draw(parts, prompts)
    assert [[answer.ids for answer in draw(parts, [prompt])[0]] for prompt in prompts] == [
        [answer.ids for answer in of_prompt] for of_prompt in together
    ]
    assert [a.ids for a in draw(parts, prompts[:1], seed=6)[0]] != [a.ids for a in together[0]]
    assert len({answer.ids for answer in together[0]}) > 1


def test_no_answer_holds_a_suppressed_token_and_the_others_add_up_to_one(make_policy):
    parts = make_policy()
    model, tokenizer, prompts, policy, end_id = parts
    answers = draw(parts, prompts, num_samples=20, max_new_tokens=40)
    drawn = {index for of_prompt in answers for answer in of_prompt for index in answer.ids}
    assert not drawn & set(policy.suppressed.tolist())
    logits = torch.randn(4, len(tokenizer))
    scores = policy_logits(logits, *policy).log_softmax(-1)
    assert torch.allclose(scores.exp().sum(-1), torch.ones(4)) and (scores[:, policy.suppressed] == -torch.inf).all()
    for answer in (answer for of_prompt in answers for answer in of_prompt):
        assert answer.ended == (answer.ids[-1] == end_id) and end_id not in answer.ids[:-1]
        assert answer.ended or len(answer.ids) == 40


def test_frequencies_of_first_tokens_are_their_probabilities(make_policy):
    """A chi-squared test over the tokens that are expected often enough, at a level that fails once in 10,000."""
    parts = make_policy()
    model, tokenizer, prompts, policy, _ = parts
    count = 4000
    answers = draw(parts, prompts[:1], num_samples=count, max_new_tokens=1)[0]
    own, prompt = unwrapped(model), prompts[0]
    with torch.no_grad():
        features = own.extract_feature(torch.cat([image.tiles for image in prompt.images]))
        logits = own(input_ids=prompt.input_ids[None], visual_features=features).logits[0, -1]
    expected = policy_logits(logits, *policy).softmax(-1).double() * count
    observed = torch.bincount(torch.tensor([answer.ids[0] for answer in answers]), minlength=len(expected))
    often = expected >= 10
    statistic = ((observed[often] - expected[often]) ** 2 / expected[often]).sum()
    freedom = int(often.sum())
    assert freedom > 20 and statistic < freedom + 3.7 * (2 * freedom) ** 0.5 + 10
