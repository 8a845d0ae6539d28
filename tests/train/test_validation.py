"""What a training evaluates on: shares of rows, the loss, and the sample to caption."""

import json
import logging

import pytest
import torch

from internvl.data.batch import Collator
from internvl.data.dataset import ConversationDataset
from internvl.data.meta import read_meta
from internvl.data.tokenize import RenderSettings
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
            captions=None,
            caption_steps=0,
            max_tiles=6,
            num_frames=8,
        )

    return make


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
