"""Kinds of answers balanced by weights or repeated rows: told apart, counted, refused where they do not fit."""

import json
from collections import Counter

import pytest
import torch

from internvl.data.annotation import parse_row
from internvl.data.balance import Balance, BalanceEntry, field_value, weigh_kinds
from internvl.data.checking import check_dataset
from internvl.data.dataset import ConversationDataset
from internvl.data.meta import read_meta
from internvl.data.problems import RowError
from internvl.data.summary import describe_balance
from internvl.data.tokenize import RenderSettings
from internvl.errors import UserError
from internvl.model.internvl_chat.conversation import get_conv_template

ACTIONS = ["move forward"] * 14 + ["turn left"] * 3 + ["turn right"] * 2 + ["stop"]
PUBLISHED = {"move forward": 3.5, "turn left": 2, "turn right": 2, "stop": 1.5}


@pytest.fixture
def open_balanced(tiny_model, tmp_path):
    """A function: balance, and answers → a data set of them, and its check."""

    def make(balance, answers, **fields):
        rows = [
            {
                "conversations": [
                    {"from": "human", "value": "What next?"},
                    {"from": "gpt", "value": answer},
                ],
                **fields,
            }
            for answer in answers
        ]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        meta = {"nav": {"root": str(tmp_path), "annotation": str(tmp_path / "rows.jsonl"), "balance": balance}}
        (tmp_path / "meta.json").write_text(json.dumps(meta))
        settings = RenderSettings(get_conv_template("internlm2-chat"), 56, 4, max_seq_length=200)
        data = ConversationDataset(read_meta(tmp_path / "meta.json"), tiny_model.tokenizer, settings, seed=1)
        check = check_dataset(data)
        check.raise_errors("")
        data.balance(check.kinds(data))
        return data, check

    return make


def weight_by_action(data) -> Counter:
    weights = Counter()
    for number, position in data.index:
        row = data.files[number][1].row(position)
        (weight,) = data.answer_weights(data.files[number][0], row) or (1.0,)
        weights[json.loads(row.turns[-1].value)["action"]] += weight
    return weights


def answers(actions=ACTIONS):
    return [json.dumps({"thought": f"Step {number}", "action": action}) for number, action in enumerate(actions)]


@pytest.mark.parametrize(("to", "targets"), [("equal", dict.fromkeys(PUBLISHED, 1)), (PUBLISHED, PUBLISHED)])
def test_by_weight_every_kind_counts_its_target_and_the_set_as_much_as_before(to, targets, open_balanced):
    data, _ = open_balanced({"field": "action", "to": to}, answers())
    weights = weight_by_action(data)
    assert sum(weights.values()) == pytest.approx(len(ACTIONS)) and len(data) == len(ACTIONS)
    for kind, target in targets.items():
        assert weights[kind] == pytest.approx(len(ACTIONS) * target / sum(targets.values()))


def test_by_repeat_rare_kinds_come_more_often_and_no_row_is_lost(open_balanced):
    data, check = open_balanced({"field": "action", "to": PUBLISHED, "by": "repeat"}, answers(ACTIONS * 50))
    counts = weight_by_action(data)
    assert counts["move forward"] == 700 and len(set(map(tuple, data.index))) == 1000
    for kind, target in PUBLISHED.items():
        assert counts[kind] / 700 == pytest.approx(target / 3.5, rel=0.05)  # what a fraction draws


def test_the_weight_of_a_balanced_answer_reaches_its_tokens(open_balanced):
    data, _ = open_balanced({"to": "equal"}, ["stop", "go", "go", "go"], weight=0.5)
    supervised = [data[item].weights[data[item].labels != -100] for item in (0, 1)]
    assert torch.allclose(supervised[0], torch.tensor(1.0)) and torch.allclose(supervised[1], torch.tensor(1 / 3))


def test_a_pattern_tells_kinds_apart_by_its_group_and_others_stay_as_they_are(open_balanced):
    balance = {"pattern": "next action is (move|turn|stop)", "to": "equal"}
    texts = ["The next action is move forward 75 cm."] * 3 + ["The next action is turn left 15 degree.", "I am lost."]
    data, check = open_balanced(balance, texts)
    spec = data.specs[0]
    table = {row["kind"]: row for row in describe_balance(spec, check.kinds(data)["nav"])}
    assert {kind: row["answers"] for kind, row in table.items()} == {"move": 3, "turn": 1, "": 1}
    assert table["move"]["share_after"] == table["turn"]["share_after"] == pytest.approx(0.4)
    assert table[""]["factor"] == 1 and table[""]["share_after"] == pytest.approx(0.2)


def test_a_field_may_be_deep_and_its_value_of_any_type():
    assert field_value('{"plan": {"action": "stop"}}', "plan.action") == "stop"
    assert field_value('{"steps": 3}', "steps") == "3" and field_value('{"done": true}', "done") == "true"
    for answer in ("no JSON", "[1]", "{}", '{"plan": 3}'):
        assert field_value(answer, "plan.action") is None


@pytest.mark.parametrize(
    ("balance", "words"),
    [
        ({"field": "action", "to": {"go": 1}}, r"names 'go', which no answer is. There are: 'move forward' 14, "),
        ({"field": "action", "to": {"stop": 1}}, r"to: lacks 'move forward', which 14 answers are"),
        ({"field": "verb", "to": "equal"}, r"nav.balance: no answer has the field 'verb'"),
        ({"pattern": "(", "to": "equal"}, r"nav.balance.pattern: '\(' is not a regular expression"),
        ({"field": "a", "pattern": "b", "to": "equal"}, r"nav.balance: has a field and a pattern"),
        ({"field": "a", "to": {}}, r"nav.balance.to: names no kind of answer"),
        ({"field": "a", "to": "even"}, r"nav.balance.to: is 'even'. Give \"equal\", or an object"),
        ({"field": "a"}, r"nav.balance.to: is missing"),
        ({"to": "equal", "by": "luck"}, r"nav.balance.by: is 'luck'"),
        ({"to": "equal", "key": 1}, r"nav.balance.key: is not a key of an entry"),
        ({"field": "action", "to": {**PUBLISHED, "stop": 90_000}, "by": "repeat"}, "'stop' would be repeated 360,000"),
    ],
)
def test_what_does_not_fit_is_refused_with_file_and_key(balance, words, open_balanced):
    with pytest.raises(UserError, match=words):
        open_balanced(balance, answers())


def test_rows_of_several_answers_are_not_repeated_by_one_of_them():
    turns = [{"from": "human", "value": "What next?"}, {"from": "gpt", "value": "stop"}] * 2
    row = parse_row({"conversations": turns}, "rows.jsonl:4")
    assert weigh_kinds(row, Balance()) == {"stop": 2}
    with pytest.raises(RowError, match=r'^rows.jsonl:4: has 2 answers, .* Set "by": "weight"'):
        weigh_kinds(row, Balance(by="repeat"))


def test_an_entry_that_is_written_again_says_the_same():
    for balance in (Balance("action", None, (("go", 1.0),), "repeat"), Balance(pattern="a", by="weight")):
        assert Balance.of(BalanceEntry(**balance.as_entry()), "meta.json") == balance
