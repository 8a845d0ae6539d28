"""An answer of weight 3 trains as three such rows, one of weight 0 as if it were not supervised; in every way."""

import json

import pytest
import torch

from internvl.data.batch import Collator
from internvl.model.internvl_chat.causal_lm import IGNORE_INDEX
from tests.train.conftest import NUM_ROWS
from tests.train.one_step import WAYS, Way, assert_equal, step

TOLERANCE = 1e-6  # of the loss
WEIGHTS = [1, 3, 2, 1, 1, 2, 1, 4, 1, 1, 2, 1, 3, 1, 2, 1]


@pytest.fixture
def write(captions, tmp_path):
    """A function: what becomes of each row, given its number, as a list of rows → their file."""
    rows = [json.loads(line) for line in (captions / "rows.jsonl").read_text().splitlines()]

    def write_rows(change, name="changed.jsonl"):
        changed = [row for number, row in enumerate(rows) for row in change(number, json.loads(json.dumps(row)))]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in changed))
        return tmp_path / name

    return write_rows


@pytest.mark.parametrize("member", ["internlm2", "qwen3"])
@pytest.mark.parametrize("name", ["plain", *WAYS])
def test_whole_weights_equal_repeated_rows(name, member, write, model_and_data):
    weighted = write(lambda number, row: [{**row, "weight": WEIGHTS[number]}])
    repeated = write(lambda number, row: [row] * WEIGHTS[number], "repeated.jsonl")
    got = step(*model_and_data(member=member, rows=weighted), WAYS.get(name, Way()))
    assert_equal(got, step(*model_and_data(member=member, rows=repeated), Way()), TOLERANCE)


@pytest.mark.parametrize("name", ["plain", *WAYS])
def test_a_turn_of_weight_0_equals_an_unsupervised_one(name, write, model_and_data):
    """Against the loss of plain rows whose labels are masked by hand."""

    def unlearn_first(number, row):
        answers = [turn for turn in row["conversations"] if turn["from"] == "gpt"]
        if len(answers) > 1:
            answers[0]["loss"] = False
        return [row]

    rows = write(unlearn_first)
    got = step(*model_and_data(rows=rows), WAYS.get(name, Way()))
    model, tokenizer, data = model_and_data()
    batches = [Collator(tokenizer.pad_token_id, 56)([data[number]]) for number in range(NUM_ROWS)]
    for batch in batches:
        labels = batch["labels"][0]
        starts = [n for n in range(1, len(labels)) if labels[n] != IGNORE_INDEX and labels[n - 1] == IGNORE_INDEX]
        if len(starts) > 1:
            labels[: starts[1]] = IGNORE_INDEX
    count = sum(int(batch.num_supervised) for batch in batches)
    total = 0.0
    for batch in batches:
        loss = model(**batch.model_inputs(), num_items_in_batch=count).loss
        loss.backward()
        total += loss.item()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_equal(got, (total, gradients), TOLERANCE)


def test_the_weighted_loss_is_that_of_a_slow_loop_over_tokens(write, model_and_data):
    weights = [0.3, 1, 2.5, 0.7] * 4
    rows = write(lambda number, row: [{**row, "weight": weights[number]}])
    model, tokenizer, data = model_and_data(rows=rows)
    total = counted = 0.0
    for number in range(NUM_ROWS):
        inputs = Collator(tokenizer.pad_token_id, 56)([data[number]]).model_inputs()
        labels = inputs.pop("labels")[0]
        inputs.pop("loss_weight", None)
        with torch.no_grad():
            scores = model(**inputs).logits[0].log_softmax(-1)
        for position in range(1, len(labels)):
            if labels[position] != IGNORE_INDEX:
                total -= weights[number] * scores[position - 1, labels[position]].item()
                counted += weights[number]
    for way in (Way(), Way(share=True, packed=True)):
        assert step(*model_and_data(rows=rows), way)[0] == pytest.approx(total / counted, rel=1e-5)
