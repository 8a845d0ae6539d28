"""The policy gradient: against a plain loop of single rows, and against the enumerated gradient of a toy policy."""

import itertools

import numpy as np
import pytest
import torch

from internvl.data.batch import Collator
from internvl.model.adapter import unwrapped
from internvl.reward.objective import StartWeights, advantages, make_batch
from tests.reward.conftest import MEMBERS
from tests.reward.test_answer_sampling import draw


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("ce_mix", [0.0, 0.3])
def test_the_gradient_is_that_of_a_loop_over_single_answers(member, temperature, ce_mix, make_policy):
    parts = make_policy(member, temperature)
    model, tokenizer, prompts, policy, _ = parts
    answers = draw(parts, prompts)
    rng = np.random.default_rng(1)
    weights = advantages(rng.normal(size=(len(prompts), 3)), "leave-one-out") / (3 * len(prompts))
    reference_tokens = sum(len(ids) for prompt in prompts for ids in prompt.reference_ids)
    batch = make_batch(
        prompts,
        answers,
        weights,
        Collator(tokenizer.pad_token_id, 56, packed=True),
        reference_weight=ce_mix / reference_tokens,
    )
    model.zero_grad()
    loss = model(**batch.model_inputs(), num_items_in_batch=1, return_logits=False, **policy.forward_arguments()).loss
    loss.backward()
    shared = gradients(model)

    model.zero_grad()
    own, total = unwrapped(model), 0.0
    for prompt, of_prompt, row in zip(prompts, answers, weights, strict=True):
        rows = [(answer.ids, weight) for answer, weight in zip(of_prompt, row, strict=True)]
        rows += [(ids, ce_mix / reference_tokens) for ids in prompt.reference_ids] if ce_mix else []
        for ids, weight in rows:
            features = (
                own.extract_feature(torch.cat([image.tiles for image in prompt.images])) if prompt.images else None
            )
            whole = torch.cat([prompt.input_ids, torch.tensor(ids)])[None]
            logits = model(input_ids=whole, visual_features=features).logits[0, len(prompt.input_ids) - 1 : -1]
            logits = (logits / temperature).index_fill(-1, policy.suppressed, -torch.inf)
            scores = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])
            part = -weight * scores.sum()
            part.backward()
            total += part.item()
    assert loss.item() == pytest.approx(total, abs=1e-5 * max(1, abs(total)))
    for name, gradient in gradients(model).items():
        assert (shared[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-9, name


def test_leave_one_out_is_unbiased_and_standardising_is_not():
    """Of a softmax over six answers: the estimator's mean over draws, against the enumerated gradient."""
    rng = np.random.default_rng(0)
    theta, rewards = rng.normal(size=6), rng.normal(size=6) * 3
    p = np.exp(theta) / np.exp(theta).sum()
    exact = sum(p[a] * rewards[a] * (np.eye(6)[a] - p) for a in range(6))
    count, samples = 40_000, 3
    drawn = rng.choice(6, size=(count, samples), p=p)
    for kind, unbiased in (("leave-one-out", True), ("standardized", False)):
        weights = advantages(rewards[drawn], kind)
        estimates = (weights[..., None] * (np.eye(6)[drawn] - p)).mean(axis=1)
        error = np.abs(estimates.mean(axis=0) - exact)
        assert (error < 4 * estimates.std(axis=0) / count**0.5).all() == unbiased


def test_the_expectation_over_all_draws_is_exactly_the_gradient():
    theta, rewards = np.array([0.3, -0.2, 0.9]), np.array([1.0, 4.0, -2.0])
    p = np.exp(theta) / np.exp(theta).sum()
    exact = sum(p[a] * rewards[a] * (np.eye(3)[a] - p) for a in range(3))
    total = np.zeros(3)
    for draws in itertools.product(range(3), repeat=4):
        weights = advantages(rewards[list(draws)][None], "leave-one-out")[0]
        total += p[list(draws)].prod() * (weights[:, None] * (np.eye(3)[list(draws)] - p)).mean(axis=0)
    assert total == pytest.approx(exact, abs=1e-12)


def test_answers_that_are_all_alike_teach_nothing():
    for kind in ("leave-one-out", "standardized"):
        assert advantages(np.full((2, 4), 3.0), kind).tolist() == [[0.0] * 4] * 2


def test_the_start_comes_back_for_a_moment(make_policy):
    model = make_policy()[0]
    start = StartWeights(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(1.0)
    with start.in_place():
        assert all(torch.equal(p, value) for p, value in zip(trained, before, strict=True))
    assert all(torch.equal(p, value + 1.0) for p, value in zip(trained, before, strict=True))
