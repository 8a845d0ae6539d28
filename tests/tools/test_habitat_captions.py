"""What is said about the scenes, and how statements are scored."""

import json
import re

import numpy as np
import pytest
import score_grounding
from habitat.captions import (
    CAPTION_PROMPT,
    FOLLOW_UPS,
    habitat_captions,
    pretrain_turns,
    with_article,
)
from habitat.dataset import View, scene_records
from habitat.furniture import KINDS
from habitat.grounding import grounding_f1, mentioned_triples, parse_caption, swapped_f1
from habitat.palette import NAMED_COLOURS
from habitat.rooms import sample_scene

NUM_SCENES = 200
LEFT, MIDDLE, RIGHT = ("red", "sofa", "left"), ("blue", "lamp", "middle"), ("green", "chair", "right")


@pytest.fixture(scope="module")
def scenes():
    return {seed: sample_scene(seed) for seed in range(NUM_SCENES)}


@pytest.fixture(scope="module")
def captions(scenes):
    return {seed: habitat_captions(scene, np.random.default_rng(seed)) for seed, scene in scenes.items()}


@pytest.fixture(scope="module")
def records(scenes):
    views = [View(seed, "", scene.pieces, []) for seed, scene in scenes.items()]
    return {int(seed): pieces for seed, pieces in scene_records(views).items()}


@pytest.mark.slow
def test_five_different_short_sentences(captions):
    for five in captions.values():
        assert len(set(five)) == len(five) == 5
        for caption in five:
            assert caption[0].isupper()
            assert caption.endswith(".")
            assert len(caption.split()) <= 26
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption)


def test_every_caption_states_exactly_the_mentioned_pieces(scenes, captions):
    for seed, scene in scenes.items():
        expected = {(piece.colour, piece.kind, piece.side) for piece in scene.mentioned}
        assert all(parse_caption(caption) == expected for caption in captions[seed])


def test_true_captions_score_one_and_swapped_ones_little(captions, records):
    first = {seed: five[0] for seed, five in captions.items()}
    assert grounding_f1(first, records) == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert swapped_f1(first, records)["f1"] < 0.3


@pytest.mark.parametrize(
    ("text", "triples"),
    [
        ("A room with a red sofa on the left and a blue lamp in the middle.", {LEFT, MIDDLE}),
        ("On the left a red sofa, in the middle there is a blue lamp", {LEFT, MIDDLE}),
        ("on the right is a green chair", {RIGHT}),
        ("A couch that is on the left", set()),
        ("A red couch on the left, a lamp in the center and a green chair.", {LEFT}),
        ("a green chair at the right side; a blue lamp, centre", {RIGHT, MIDDLE}),
        ("left: sofa, red; right: chair, green", {("red", "chair", "right")}),
        ("the the red red sofa sofa left", {("red", "sofa", "left")}),
        ("A view from the right: a red sofa on the left", {LEFT}),
        ("", set()),
    ],
)
def test_parsing_imperfect_captions(text, triples):
    assert parse_caption(text) == triples


def test_scores_by_hand():
    pieces = [{"kind": k, "colour": c, "side": s, "mentioned": True} for c, k, s in (LEFT, RIGHT)]
    pieces.append({"kind": "bed", "colour": "white", "side": "middle", "mentioned": False})
    assert mentioned_triples(pieces) == {LEFT, RIGHT}
    caption = "A red sofa on the left, a blue lamp in the middle and a green chair on the left."
    scores = grounding_f1({1: caption}, {1: pieces})
    assert scores == pytest.approx({"precision": 1 / 3, "recall": 1 / 2, "f1": 0.4})
    assert grounding_f1({1: "nothing"}, {1: pieces}) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    with pytest.raises(ValueError, match="at least two"):
        swapped_f1({1: caption}, {1: pieces})


def test_articles():
    assert with_article("orange sofa") == "an orange sofa"
    assert with_article("sofa") == "a sofa"


def test_pretraining_conversations_are_true_and_worded_differently(scenes):
    prompts, yes_no = [], []
    for seed, scene in scenes.items():
        turns = pretrain_turns(scene, np.random.default_rng(seed))
        assert len(turns) == 1 + FOLLOW_UPS
        assert len({question for question, _ in turns}) == len(turns)
        assert turns == pretrain_turns(scene, np.random.default_rng(seed))
        prompts.append(turns[0][0])
        pieces = {piece.kind: piece for piece in scene.pieces}
        for question, answer in turns:
            assert not re.search(r"(on|in) the (left|middle|right)", f"{question} {answer}")
            if match := re.match(r"What colour is the (\w+)\?", question):
                assert re.findall(r"\w+", answer)[-1] == pieces[match[1]].colour
            if match := re.match(r"Where is the (\w+)\?", question):
                assert re.findall(r"\w+", answer)[-1] == pieces[match[1]].side
            if match := re.match(r"Is there an? (\w+)\?", question):
                assert answer.lower().startswith("yes") == (match[1] in pieces)
                yes_no.append(match[1] in pieces)
            if match := re.match(r"Where is the (\w+) piece\?", question):
                colours = [piece.colour for piece in scene.pieces if piece.visible_share > 0]
                assert match[1] not in NAMED_COLOURS or colours.count(match[1]) == 1
    assert 0.15 < prompts.count(CAPTION_PROMPT) / NUM_SCENES < 0.35
    assert 0.3 < np.mean(yes_no) < 0.7


def test_listing_names_the_mentioned_pieces_in_order(scenes):
    for seed, scene in scenes.items():
        answer = pretrain_turns(scene, np.random.default_rng(seed))[0][1]
        words = re.findall(r"\w+", answer)
        assert [word for word in words if word in KINDS] == [piece.kind for piece in scene.mentioned]
        assert [word for word in words if word in NAMED_COLOURS] == [piece.colour for piece in scene.mentioned]


def test_scoring_program(captions, records, tmp_path, capsys):
    predictions = [{"image_id": seed, "caption": five[1]} for seed, five in captions.items()]
    (tmp_path / "predictions.json").write_text(json.dumps(predictions))
    (tmp_path / "scenes.json").write_text(json.dumps({"val": records}))
    files = [str(tmp_path / name) for name in ("predictions.json", "scenes.json")]
    score_grounding.main([*files, "--json", str(tmp_path / "scores.json")])
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["images"] == NUM_SCENES
    assert scores["grounding"]["f1"] == 1.0
    assert scores["swapped"]["f1"] < 0.3
    assert "grounding" in capsys.readouterr().out
