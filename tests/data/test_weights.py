"""What answers count: read from rows and turns, refused by name, counted by the check, summed by the batch."""

import json

import pytest
import torch

from internvl.data.annotation import parse_row
from internvl.data.batch import Collator
from internvl.data.checking import check_dataset
from internvl.data.dataset import ConversationDataset
from internvl.data.meta import DatasetSpec
from internvl.data.problems import RowError
from internvl.data.tokenize import RenderSettings
from internvl.model.internvl_chat.causal_lm import IGNORE_INDEX
from internvl.model.internvl_chat.conversation import get_conv_template

QUESTION, ANSWER = {"from": "human", "value": "Hello."}, {"from": "gpt", "value": "many waves"}


def weights(*turns, **fields):
    return parse_row({"conversations": list(turns), **fields}, "rows.jsonl:3").weights


def test_the_weight_of_an_answer_is_its_own_times_the_rows():
    heavy, silent = {**ANSWER, "weight": 2}, {**ANSWER, "loss": False}
    assert weights(QUESTION, ANSWER) == ()
    assert weights(QUESTION, ANSWER, weight=1, loss=True) == ()
    assert weights(QUESTION, ANSWER, weight=0.3) == (0.3,)
    assert weights(QUESTION, heavy, QUESTION, ANSWER, weight=0.5) == (1.0, 0.5)
    assert weights(QUESTION, silent, QUESTION, ANSWER) == (0.0, 1.0)
    assert weights({**QUESTION, "loss": False}, ANSWER) == ()  # as ms-swift writes it: questions are not learnt anyway


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), 1e300, "0.3", True, [1]])
def test_what_is_not_a_weight_is_refused_with_its_place(value):
    with pytest.raises(RowError, match=r"^rows.jsonl:3: has the weight .*Give a number from 0"):
        weights(QUESTION, ANSWER, weight=value)
    with pytest.raises(RowError, match=r"^rows.jsonl:3: turn 2 has the weight "):
        weights(QUESTION, {**ANSWER, "weight": value})


@pytest.mark.parametrize("value", [0.5, "no", 2, []])
def test_loss_is_true_or_false(value):
    with pytest.raises(RowError, match="has the key 'loss' .*a number goes into 'weight'"):
        weights(QUESTION, ANSWER, loss=value)


def test_a_weight_of_a_question_is_refused():
    with pytest.raises(RowError, match="turn 1, from 'human', has the weight 3"):
        weights({**QUESTION, "weight": 3}, ANSWER)


@pytest.fixture
def open_weighted(tiny_model, tmp_path):
    def make(rows):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = RenderSettings(get_conv_template("internlm2-chat"), 56, 4, max_seq_length=100)
        spec = DatasetSpec("rows", tmp_path, (tmp_path / "rows.jsonl",))
        return ConversationDataset([spec], tiny_model.tokenizer, settings)

    return make


def test_rows_of_weight_0_are_left_out_and_counted(open_weighted):
    rows = [{"conversations": [QUESTION, ANSWER], **fields} for fields in ({}, {"weight": 0}, {"weight": 2})]
    data = open_weighted(rows)
    check = check_dataset(data)
    assert check.trains(data.index).tolist() == [True, False, True]
    assert check.row_stats(data.index)["weighted"].tolist() == [False, True, True]
    assert not check.errors and "rows.jsonl:2: all its answers have the weight 0" in check.left_out[0].message


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_has_the_weight_of_every_supervised_token(packed, open_weighted):
    rows = [{"conversations": [QUESTION, ANSWER], **fields} for fields in ({}, {"weight": 0.25})]
    data = open_weighted(rows)
    collate = Collator(2, 56, packed=packed)
    batch = collate([data[0], data[1]])
    expected = torch.where(batch["labels"] == IGNORE_INDEX, 0.0, 1.0)
    quarter = (batch["labels"] != IGNORE_INDEX).cumsum(1) > int(data[0].labels.ne(IGNORE_INDEX).sum())
    expected[quarter if packed else torch.tensor([[False], [True]]).expand_as(expected)] *= 0.25
    assert torch.equal(batch["loss_weight"], expected) and batch["loss_weight"].dtype == torch.float32
    count = int(data[0].labels.ne(IGNORE_INDEX).sum())
    assert float(batch.supervised_weight) == 1.25 * count
    unweighted = collate([data[0], data[0]])
    assert "loss_weight" not in unweighted and float(unweighted.supervised_weight) == 2 * count
