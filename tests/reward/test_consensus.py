"""Consensus: the answer that a slow loop with pycocoevalcap's CIDEr finds closest to the others."""

import json

import pytest
from pycocoevalcap.cider.cider import Cider

from internvl.inference.engine import Engine, Request
from internvl.reward.consensus import SamplingEngine, choose_by_consensus
from tests.conftest import make_image

SAMPLES = {
    0: ["A red chair by a table.", "A red chair near a table.", "A blue sofa.", "A red chair by a lamp."],
    1: ["Two cats sleep.", "Two dogs sleep on a bed.", "Two cats sleep on a bed.", "A plane."],
    2: ["A kitchen with a white stove.", "A stove.", "A kitchen with a stove.", "A white kitchen with a stove."],
}


def test_the_chosen_answer_has_the_most_agreement():
    chosen = choose_by_consensus(SAMPLES)
    assert chosen[0].startswith("A red chair") and chosen[1] == "Two cats sleep on a bed."


def test_agreement_is_the_mean_score_against_the_others_with_the_frequencies_of_all():
    """With pycocoevalcap's own scorer, one pair at a time, in a corpus whose frequencies are those of all answers."""
    from internvl.reward.chunk_tokenizer import ChunkTokenizer
    from internvl.reward.cider_d import CiderD

    tokenizer = ChunkTokenizer()
    words = {key: tokenizer(texts) for key, texts in SAMPLES.items()}
    scorer = CiderD(words, with_end=False)

    def theirs(key, place):
        """The score of one answer, where every image has all its answers as references: less its own part of it."""
        references = {other: [" ".join(one) for one in captions] for other, captions in words.items()}
        candidates = {other: [captions[0]] for other, captions in references.items()}
        candidates[key] = [references[key][place]]
        _, scores = Cider().compute_score(references, candidates)
        return scores[list(references).index(key)] * len(references[key])

    for key, captions in words.items():
        own = scorer.agreement(key)
        for place in range(len(captions)):
            itself = 10.0  # what a caption scores against itself, but for sizes of n-grams that it has none of
            sizes = sum(len(captions[place]) >= n for n in range(1, 5)) / 4
            assert own[place] * (len(captions) - 1) == pytest.approx(theirs(key, place) - itself * sizes, abs=1e-6)


def test_one_answer_agrees_with_itself():
    assert choose_by_consensus({"a": ["x y"], "b": ["z", "z w"]})["a"] == "x y"


@pytest.fixture
def engine(tiny_base):
    engine = SamplingEngine.load(tiny_base, precision="fp32", device="cpu", max_tiles=2)
    engine.num_samples, engine.temperature = 4, 1.0
    return engine


def test_answers_do_not_depend_on_the_batch_but_on_the_seed(engine):
    requests = [Request([engine.read(make_image(60, 60 + 40 * n, n))], "What is it?") for n in range(3)]
    together = engine.answer(requests, max_new_tokens=8)
    assert [engine.answer([request], max_new_tokens=8)[0] for request in requests] == together
    assert len(set(together)) == 3 and all(len(json.loads(texts)) == 4 for texts in together)
    assert len(set(json.loads(together[0]))) > 1
    engine.seed = 1
    assert engine.answer(requests, max_new_tokens=8) != together


def test_a_low_temperature_draws_what_greedy_says(engine, tiny_base):
    engine.temperature = 1e-6
    request = Request([engine.read(make_image(60, 60, 3))], "What is it?")
    greedy = Engine.load(tiny_base, precision="fp32", device="cpu", max_tiles=2)
    expected = greedy.answer([request], max_new_tokens=8, do_sample=False)[0]
    assert set(json.loads(engine.answer([request], max_new_tokens=8)[0])) == {expected}
