"""Rewards by name: parsed, summed by weight, refused by name; BLEU against NLTK's formula written out."""

import numpy as np
import pytest

from internvl.errors import UserError
from internvl.reward.rewards import Answers, RewardSpec, WeightedReward, sentence_bleu

REFERENCES = {0: ("A red chair.", "One chair, red."), 1: ('{"action": "stop"}',)}
SAMPLED = [
    Answers(0, REFERENCES[0], ("A red chair.", "A red", "A blue table."), (True, False, True)),
    Answers(1, REFERENCES[1], ('{"action": "stop"}', "stop", '{"action": "go"}'), (True, True, True)),
]


def rewards(*texts):
    return WeightedReward([RewardSpec.parse(text) for text in texts], REFERENCES)(SAMPLED)


def test_weights_add_the_parts_up():
    total, parts = rewards("exact:2", "json-valid:0.5")
    assert parts["exact"].tolist() == [[1, 0, 0], [1, 0, 0]]
    assert parts["json-valid"].tolist() == [[0, 0, 0], [1, 0, 1]]
    assert total.tolist() == [[2, 0, 0], [2.5, 0, 0.5]]


def test_cider_d_prefers_what_is_like_the_references_and_ended():
    total, _ = rewards("CIDEr-D")
    assert total[0, 0] > total[0, 1] > total[0, 2] > 0  # of which "a" is in a reference


def test_bleu_is_the_formula():
    words, references = "a red chair stands here".split(), ["a red chair is here".split(), "one chair".split()]
    precisions = [4 / 5, 3 / 5, 2 / 4, 1 / 3]  # 1-grams; then each count plus one
    assert sentence_bleu(words, references) == pytest.approx(np.exp(np.mean(np.log(precisions))))
    short = "a red".split()
    assert sentence_bleu(short, references[:1]) == pytest.approx(np.exp(1 - 5 / 2) * (1 * 1 * 1 * 1) ** 0.25)
    assert sentence_bleu([], references) == 0 and sentence_bleu(["no"], references) == 0


def test_a_function_of_ones_own_gets_texts_references_and_ends(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def length(answers, references, ended):\n"
        "    assert len(references) in (1, 2) and len(ended) == 3\n"
        "    return [len(answer) * done for answer, done in zip(answers, ended)]\n"
        "def few(answers, references, ended):\n    return [1]\n"
        "def none(answers, references, ended):\n    return None\n"
    )
    total, _ = rewards(f"{tmp_path}/mine.py:length:0.5")
    assert total[0].tolist() == [6.0, 0.0, 6.5]
    for name in ("few", "none"):
        with pytest.raises(UserError, match=f"mine.py:{name}: returned .* Return a"):
            rewards(f"{tmp_path}/mine.py:{name}")
    with pytest.raises(UserError, match="has no function other"):
        rewards(f"{tmp_path}/mine.py:other")
    with pytest.raises(UserError, match="there is no file"):
        rewards(f"{tmp_path}/gone.py:length")


@pytest.mark.parametrize("text", ["METEOR", "CIDEr-D:0", "CIDEr-D:nan", "exact:inf", "mine.py", ""])
def test_what_is_not_a_reward_is_refused(text):
    with pytest.raises(UserError, match="--reward: "):
        RewardSpec.parse(text)


@pytest.mark.parametrize(
    ("text", "references", "texts", "worth"),
    [
        ("json:action:2", ['{"action": "stop"}'], ['{"action": "stop"}', '{"action": "go"}', "stop"], [2, 0, 0]),
        ("number", ["It is 1,000."], ["1000 of them", "999", "none"], [1, 0, 0]),
        ("choice:0.5", ["B"], ["(b) the door", "A", "none"], [0.5, 0, 0]),
        (r"regex:go (\w+):1", ["go left"], ["I go left now", "go right", "left"], [1, 0, 0]),
    ],
)
def test_what_an_evaluation_matches_is_a_reward(text, references, texts, worth):
    reward = WeightedReward([RewardSpec.parse(text)], {0: references})
    answers = Answers(0, tuple(references), tuple(texts), (True,) * 3)
    assert reward([answers])[0].tolist() == [worth]
    open_ended = Answers(0, tuple(references), tuple(texts), (False,) * 3)
    assert reward([open_ended])[0].tolist() == [[0, 0, 0]]


def test_a_match_without_its_field_is_refused():
    with pytest.raises(UserError, match="--reward: is 'json'. Give exact, choice, number, json:FIELD or regex"):
        RewardSpec.parse("json")
