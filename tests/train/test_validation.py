"""What a training evaluates on: shares of rows, the loss, and the sample to caption."""

import json
import logging
from dataclasses import replace

import pytest
import torch

from internvl.data.batch import Collator
from internvl.data.dataset import ConversationDataset
from internvl.data.meta import read_meta
from internvl.data.tokenize import RenderSettings
from internvl.evaluation.matching import Match
from internvl.model.internvl_chat.conversation import get_conv_template
from internvl.train.validation import Evaluator, read_caption_sample
from tests.conftest import make_image


@pytest.fixture
def make_evaluator(tiny_model):
    """``make_evaluator(meta file, batch size)``; sizes are those of the tiny base."""

    def make(meta, batch_size: int) -> Evaluator:
        model, tokenizer = tiny_model
        template = get_conv_template("internlm2-chat")
        settings = RenderSettings(template, model.config.image_size, model.num_image_token, max_seq_length=4096)
        dataset = ConversationDataset(read_meta(meta), tokenizer, settings, on_bad_sample="skip")
        collator = Collator(tokenizer.pad_token_id, model.config.image_size)
        return Evaluator(
            dataset,
            collator,
            tokenizer,
            batch_size=batch_size,
            sample=None,
            caption_steps=0,
            answer_steps=0,
            match=None,
            max_tiles=6,
            num_frames=8,
        )

    return make


def test_answers_of_the_sample_are_scored_as_evaluate_sh_scores_them(
    make_evaluator, rows_folder, tiny_model, monkeypatch
):
    """Against counting by hand: of three colours, the model says the right one where the id is even."""
    evaluator = make_evaluator(rows_folder / "meta.json", 2)
    sample = read_caption_sample(str(rows_folder / "meta.json"), 6, 0, allow_outside_root=False)
    wanted = dict(
        zip((one.id for one in sample.questions), ("red", "blue", "red", "red", "blue", "green"), strict=True)
    )
    truth = {
        "annotations": [
            {"image_id": image_id, "caption": json.dumps({"colour": colour})} for image_id, colour in wanted.items()
        ]
    }
    evaluator.sample, evaluator.match = replace(sample, ground_truth=truth), Match.parse("json:colour")
    said = [
        '{"colour": "red"}',
        '{"colour": "red"}',
        "red",
        '{"colour": "red"}',
        '{"colour": "blue"}',
        '{"colour": 1}',
    ]
    predictions = [{"image_id": image_id, "caption": text} for image_id, text in zip(wanted, said, strict=True)]
    monkeypatch.setattr(evaluator, "_answer", lambda model, chosen: predictions)
    scores = evaluator.answer_scores(tiny_model.model, captions=False, answers=True)
    f1_red, f1_blue, f1_green = 2 * 2 / (3 + 3), 2 * 1 / (1 + 2), 0.0
    assert scores["eval_accuracy"] == pytest.approx(3 / 6)
    assert scores["eval_macro_F1"] == pytest.approx((f1_red + f1_blue + f1_green) / 3)
    assert scores.keys() == {"eval_accuracy", "eval_macro_F1"}
    assert [one.answer for one in evaluator.samples] == said


@pytest.mark.parametrize(
    ("steps", "due"),
    [((0, 0), (False, False)), ((4, 3), (True, False)), ((5, 2), (False, True)), ((5, 3), (False, False))],
)
def test_scores_are_due_at_their_own_steps_and_at_the_end(steps, due, make_evaluator, rows_folder):
    evaluator = make_evaluator(rows_folder / "meta.json", 2)
    evaluator.caption_steps, evaluator.answer_steps = steps
    assert evaluator.due(4, 9) == due
    assert evaluator.due(9, 9) == (bool(steps[0]), bool(steps[1]))


def supervised(batches) -> int:
    return sum(int((batch["labels"] != -100).sum()) for batch in batches)


@pytest.mark.parametrize(("world", "batch_size"), [(1, 5), (2, 4), (5, 2), (5, 1), (30, 3)])
def test_shares_have_every_row_once_and_equally_many_batches(world, batch_size, make_evaluator, rows_folder):
    evaluator = make_evaluator(rows_folder / "meta.json", batch_size)
    shares = [list(evaluator.batches(rank, world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    whole = sum(int((row.labels != -100).sum()) for row in evaluator.dataset)
    assert sum(supervised(share) for share in shares) == whole
    assert all("skipped" not in batch for share in shares for batch in share)


def test_the_loss_does_not_depend_on_batches_and_draws_no_random_number(make_evaluator, rows_folder, tiny_model):
    model = tiny_model.model.eval()
    state = torch.get_rng_state()
    losses = [make_evaluator(rows_folder / "meta.json", size).loss(model, torch.device("cpu")) for size in (1, 7)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_image_that_vanished_is_left_out_with_a_warning(make_evaluator, tmp_path, caplog):
    rows = []
    for number in range(3):
        make_image(60, 60, number).save(tmp_path / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Waves."}]
        rows.append({"image": f"{number}.png", "conversations": turns})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "meta.json").write_text(
        json.dumps({"x": {"root": str(tmp_path), "annotation": str(tmp_path / "rows.jsonl")}})
    )
    evaluator = make_evaluator(tmp_path / "meta.json", 2)
    before = supervised(evaluator.batches(0, 1))
    (tmp_path / "1.png").unlink()
    with caplog.at_level(logging.WARNING):
        assert supervised(evaluator.batches(0, 1)) == before * 2 // 3
    assert "1.png: there is no such image" in caplog.text


def test_the_sample_is_drawn_alike_every_time_with_its_references(rows_folder):
    def draw(seed: int, size: int = 5):
        return read_caption_sample(str(rows_folder / "meta.json"), size, seed, allow_outside_root=False)

    first, again, other = draw(1), draw(1), draw(2)
    assert first.questions == again.questions != other.questions
    assert first.references().keys() == {question.id for question in first.questions} and len(first.questions) == 5
    everything = draw(1, 1000)
    assert len({question.id for question in everything.questions}) == len(everything.questions)
    for question in first.questions:
        assert first.references()[question.id] == everything.references()[question.id]
