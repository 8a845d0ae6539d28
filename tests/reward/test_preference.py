"""Preferences: loss and gradient of a plain loop over single answers, whatever shares an image."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from internvl.data.annotation import parse_row
from internvl.data.batch import Collator
from internvl.data.checking import check_dataset
from internvl.data.problems import RowError
from internvl.data.sampling import SampleGroup
from internvl.errors import UserError
from internvl.model.adapter import unwrapped
from internvl.reward.objective import StartWeights, log_probs, make_batch
from internvl.reward.preference import OBJECTIVES, preference_loss
from internvl.reward.prompts import PreferenceDataset
from internvl.train.preference_trainer import PreferenceTrainer
from tests.reward.conftest import MEMBERS
from tests.reward.test_objective import gradients


class Looked(PreferenceTrainer):
    """The trainer's own computation of weights, without transformers' loop around it."""

    def __init__(self, model, collate, objective, beta):
        self.model, self.collate, self.vision_cache = model, collate, None
        self.parts, self.beta, self.policy = OBJECTIVES[objective], beta, PreferenceTrainer.plain_policy
        self.start, self.measured = StartWeights(model), []

    chat_model = property(lambda self: unwrapped(self.model))
    args = type("Args", (), {"device": torch.device("cpu")})


@pytest.fixture
def make_pairs(model_and_data, captions, tmp_path):
    """``make_pairs(member)`` → (model, tokenizer, prompts): rows of every kind, each with a rejected answer."""

    def make(member):
        rows = [json.loads(line) for line in (captions / "rows.jsonl").read_text().splitlines()]
        for number, row in enumerate(rows):
            row["rejected"] = "many " * (number % 4) + "wrong."
        file = tmp_path / "pairs.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        model, tokenizer, data = model_and_data(member=member, rows=file)
        pairs = PreferenceDataset(data, check_dataset(data).lengths(data.index))
        return model, tokenizer, [pairs[SampleGroup((number,), 0)] for number in range(0, len(pairs), 3)]

    return make


def sum_log_probs(model, prompt, ids):
    """Return log p of one answer, from a row of its own."""
    own = unwrapped(model)
    features = own.extract_feature(torch.cat([image.tiles for image in prompt.images])) if prompt.images else None
    whole = torch.cat([prompt.input_ids, torch.tensor(ids)])[None]
    logits = model(input_ids=whole, visual_features=features).logits[0, len(prompt.input_ids) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum()


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("objective", ["dpo", "mpo"])
def test_loss_and_gradient_are_those_of_a_loop_over_single_answers(member, objective, make_pairs):
    model, tokenizer, prompts = make_pairs(member)
    beta = 0.7
    model.eval()
    trainer = Looked(model, Collator(tokenizer.pad_token_id, 56, packed=True), objective, beta)
    with torch.no_grad():
        before = [[sum_log_probs(model, prompt, ids) for ids in prompt.reference_ids] for prompt in prompts]
        torch.manual_seed(1)
        for parameter in trainer.start.trained:
            parameter.add_(torch.randn_like(parameter) * 0.05)

    losses, tokens, supervised = [], 0, 0.0
    for prompt, (chosen_before, rejected_before) in zip(prompts, before, strict=True):
        chosen, rejected = (sum_log_probs(model, prompt, ids) for ids in prompt.reference_ids)
        up, down = beta * (chosen - chosen_before), beta * (rejected - rejected_before)
        dpo = -logsigmoid(up - down)
        losses.append(dpo if objective == "dpo" else 0.8 * dpo - 0.2 * (logsigmoid(up) + logsigmoid(-down)))
        supervised, tokens = supervised - chosen, tokens + len(prompt.reference_ids[0])
    loss = torch.stack(losses).mean() + (supervised / tokens if objective == "mpo" else 0)
    loss.backward()
    plain = gradients(model)
    assert abs(float(torch.stack(losses).mean()) - 0.6931) > 0.01  # it is no longer the start

    model.zero_grad()
    batches = [prompts[:2], prompts[2:]]  # as micro-batches of one step
    with torch.no_grad():
        weighted = [trainer.weighted(batch, len(prompts), tokens) for batch in batches]
    for batch, one in zip(batches, weighted, strict=True):
        inputs = make_batch(batch, one.answers, one.weights, trainer.collate).model_inputs()
        model(**inputs, num_items_in_batch=1, return_logits=False).loss.backward()
    assert sum(one.loss for one in weighted) == pytest.approx(loss.item(), abs=1e-5)
    for name, gradient in gradients(model).items():
        assert (plain[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-8, name


def test_at_the_start_the_loss_is_log_2_and_both_answers_pull_alike():
    losses, weights = preference_loss(np.zeros((3, 2)), OBJECTIVES["dpo"], 0.1)
    assert losses == pytest.approx([np.log(2)] * 3)
    assert weights == pytest.approx(np.array([[0.05, -0.05]] * 3))


def test_the_weights_are_the_derivative_of_the_loss():
    scores = np.random.default_rng(0).normal(size=(5, 2)) * 4
    for parts in OBJECTIVES.values():
        _, weights = preference_loss(scores, parts, 0.3)
        for column in range(2):
            step = np.zeros((1, 2))
            step[0, column] = 1e-5
            up, down = (preference_loss(scores + sign * step, parts, 0.3)[0] for sign in (1, -1))
            assert -(up - down) / 2e-5 == pytest.approx(weights[:, column], abs=1e-8)


def test_very_sure_pairs_are_finite():
    losses, weights = preference_loss(np.array([[1e5, -1e5], [-1e5, 1e5]]), OBJECTIVES["mpo"], 1.0)
    assert np.isfinite(losses).all() and np.isfinite(weights).all()


def test_the_chosen_answer_is_the_rows_and_the_rejected_has_its_end_mark(make_pairs):
    _, tokenizer, prompts = make_pairs("internlm2")
    for prompt in prompts:
        chosen, rejected = (tokenizer.decode(ids) for ids in prompt.reference_ids)
        assert chosen == prompt.references[0].strip() + "<|im_end|>"
        assert rejected == prompt.references[1].strip() + "<|im_end|>"


@pytest.mark.parametrize(
    ("rejected", "words"),
    [
        (7, "rejected is 7. Give the text"),
        ("  ", "rejected is '  '"),
        ("A room. ", "is the same text as the last answer"),
        ("<image> no", "contains <image>"),
        ("<IMG_CONTEXT>", "reserved token"),
    ],
)
def test_a_rejected_answer_that_is_none_is_refused(rejected, words):
    turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A room."}]
    with pytest.raises(RowError, match=words):
        parse_row({"conversations": turns, "rejected": rejected}, "file:3")


def test_a_row_without_a_rejected_answer_is_named(model_and_data):
    _, _, data = model_and_data()
    with pytest.raises(
        UserError, match=r"rows.jsonl:1: has no answer in the key 'rejected'.*make_preferences.py does"
    ):
        PreferenceDataset(data, check_dataset(data).lengths(data.index))


def test_log_probabilities_of_pairs_are_read_once_with_each_weights(make_pairs, monkeypatch):
    model, tokenizer, prompts = make_pairs("internlm2")
    trainer = Looked(model, Collator(tokenizer.pad_token_id, 56, packed=True), "dpo", 0.1)
    calls = []
    monkeypatch.setattr("internvl.train.answer_trainer.log_probs", lambda *args: calls.append(1) or log_probs(*args))
    trainer.weighted(prompts, len(prompts), 1)
    assert len(calls) == 2 and trainer.measured[0]["reward_margin"] == 0
