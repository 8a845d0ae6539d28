"""The page that shows what is supervised: every token once, its mark, the tiles as the model sees them."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from internvl.data.annotation import parse_row
from internvl.data.batch import Sample
from internvl.data.preview import SHOWN_TILES, PreviewRow, make_spans, tile_images, write_preview
from internvl.data.tokenize import render_row
from internvl.model.internvl_chat.causal_lm import IGNORE_INDEX
from internvl.model.internvl_chat.conversation import get_conv_template
from internvl.model.internvl_chat.image_processing_internvl_chat import stack_tiles
from internvl.model.vision_cache import TiledImage
from tests.conftest import make_image


def make_row(tokenizer, question="<image>\nWhat?", answer="A cup.", tiles=2, **fields) -> PreviewRow:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    row = parse_row({"conversations": turns, "image": ["a.png"] * question.count("<image>"), **fields}, "rows.jsonl:1")
    num_tiles = [tiles] * len(row.images)
    template = get_conv_template("internlm2-chat")
    rendered = render_row(
        list(row.turns),
        num_tiles,
        tokenizer=tokenizer,
        template=template,
        num_image_token=4,
        answer_weights=row.weights,
    )
    ids, labels = rendered.input_ids, rendered.labels
    images = [make_image(56, 56, number) for number in range(sum(num_tiles))]
    tiled = [TiledImage(tiles=stack_tiles(images, 56))] if images else []
    sample = Sample(torch.tensor(ids), torch.tensor(labels), tree=(len(ids), ()), images=tiled)
    sample.weights = torch.tensor(rendered.weights) if rendered.weights else None
    return PreviewRow("rows.jsonl:1", row.kind, "rows", sample, tuple(num_tiles))


def spans_of(row, tiny_model):
    return list(make_spans(row.sample, tiny_model.tokenizer, tiny_model.model.img_context_token_id))


@pytest.mark.parametrize("answer", ["A cup.", "你好，世界 😀", "two\nlines, <ref>cup</ref>", "  spaces   inside  it"])
def test_every_token_is_shown_once_and_exactly_the_labelled_ones_as_supervised(tiny_model, answer):
    row = make_row(tiny_model.tokenizer, answer=answer)
    spans = spans_of(row, tiny_model)
    assert [index for span in spans for index in span.ids] == row.sample.input_ids.tolist()
    supervised = [span.is_supervised for span in spans for _ in span.ids]
    assert supervised == (row.sample.labels != IGNORE_INDEX).tolist()
    assert "".join(span.text for span in spans if span.is_supervised) == answer.strip() + "<|im_end|>"


def test_the_weight_of_an_answer_is_shown_behind_it(tiny_model, tmp_path):
    row = make_row(tiny_model.tokenizer, weight=0.3)
    assert {span.weight for span in spans_of(row, tiny_model)} == {0.0, 0.3}
    write_preview(tmp_path / "p.html", [row], tiny_model.tokenizer, image_token_id=3)
    assert (tmp_path / "p.html").read_text().count('class="weight">× 0.3<') == 1


def test_a_run_of_image_tokens_is_one_chip_with_its_number(tiny_model):
    row = make_row(tiny_model.tokenizer, question="<image> and <image>", tiles=3)
    chips = [span for span in spans_of(row, tiny_model) if span.kind == "image"]
    assert [chip.text for chip in chips] == ["<IMG_CONTEXT> × 12"] * 2 and not any(
        chip.is_supervised for chip in chips
    )


def test_tiles_in_the_page_are_the_pixels_of_the_sample(tiny_model, tmp_path):
    row = make_row(tiny_model.tokenizer)
    write_preview(tmp_path / "p.html", [row], tiny_model.tokenizer, image_token_id=3)
    encoded = re.findall(r'src="data:image/png;base64,([^"]+)"', (tmp_path / "p.html").read_text())
    tiles = [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in encoded]
    assert len(tiles) == 2
    assert all((tile == np.asarray(make_image(56, 56, number))).all() for number, tile in enumerate(tiles))


def test_text_of_rows_is_escaped(tiny_model, tmp_path):
    attack = "<script>alert(1)</script>\"' &amp;"
    row = make_row(tiny_model.tokenizer, question=attack, answer=attack)
    row = PreviewRow(f"{attack}.jsonl:1", row.kind, attack, row.sample, row.num_tiles)
    write_preview(tmp_path / "p.html", [row], tiny_model.tokenizer, image_token_id=3)
    page = (tmp_path / "p.html").read_text()
    assert page.count("<script>") == 1 and "alert(1)</script>" not in page and "&lt;" in page


def test_the_page_needs_nothing_from_elsewhere(tiny_model, tmp_path):
    write_preview(tmp_path / "p.html", [make_row(tiny_model.tokenizer)], tiny_model.tokenizer, image_token_id=3)
    assert not re.findall(r'(?:src|href)="(?!data:)|url\(|@import|https?://', (tmp_path / "p.html").read_text())


def test_many_tiles_are_shown_in_part():
    assert len(tile_images([TiledImage(tiles=torch.zeros(20, 3, 8, 8, dtype=torch.uint8))] * 2)) == SHOWN_TILES
    assert tile_images([]) == []
