"""Ids and labels: only answers are taught, and the prompt is the one of inference."""

import pytest

from internvl.data.tokenize import render_row, truncate_row
from internvl.errors import UserError
from internvl.model.internvl_chat.conversation import TEMPLATES, Turn, get_conv_template, render_turns

TURNS = [
    Turn("human", "<image>\nWhat is it?"),
    Turn("gpt", " A pattern. "),
    Turn("human", "Of what?"),
    Turn("gpt", "Of waves."),
]


def render(tokenizer, turns, tiles, template="internlm2-chat"):
    return render_row(turns, tiles, tokenizer=tokenizer, template=get_conv_template(template), num_image_token=4)


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_exactly_the_answers_and_their_end_marks_are_taught(tiny_model, template):
    tokenizer = tiny_model.tokenizer
    sample = render(tokenizer, TURNS, [2], template)
    taught = tokenizer.decode([label for label in sample.labels if label != -100])
    end = get_conv_template(template).sep.strip()
    assert taught == f"A pattern.{end}Of waves.{end}"
    assert all(label in (-100, token) for token, label in zip(sample.input_ids, sample.labels, strict=True))


def test_each_tile_takes_its_image_tokens(tiny_model):
    model, tokenizer = tiny_model
    sample = render(tokenizer, TURNS, [3])
    assert sample.input_ids.count(model.img_context_token_id) == 3 * 4


def test_training_prompt_is_the_inference_prompt(tiny_model):
    model, tokenizer = tiny_model
    sample = render(tokenizer, TURNS, [2])
    first_answer = next(i for i, label in enumerate(sample.labels) if label != -100)
    prompt = model.build_prompt([("<image>\nWhat is it?", None)], [2])
    assert tokenizer(prompt)["input_ids"] == sample.input_ids[:first_answer]
    later = next(i for i in range(len(sample.labels) - 1, 0, -1) if sample.labels[i] == -100) + 1
    prompt = model.build_prompt([("<image>\nWhat is it?", "A pattern."), ("Of what?", None)], [2])
    assert tokenizer(prompt)["input_ids"] == sample.input_ids[:later]


def test_a_system_turn_replaces_the_default():
    segments = render_turns(get_conv_template("internlm2-chat"), [Turn("system", "Be brief."), *TURNS])
    assert segments[0].text == "<|im_start|>system\nBe brief.<|im_end|>"


def test_truncation_never_cuts_an_image_or_every_answer(tiny_model):
    model, tokenizer = tiny_model
    sample = render(tokenizer, TURNS, [2])
    first_answer = next(i for i, label in enumerate(sample.labels) if label != -100)
    cut = truncate_row(sample, first_answer + 2, image_token_id=model.img_context_token_id, where="f:1")
    assert cut.input_ids == sample.input_ids[: first_answer + 2]
    last_image_token = len(sample.input_ids) - sample.input_ids[::-1].index(model.img_context_token_id)
    for length, message in ((last_image_token - 1, "cut through"), (first_answer, "cut every answer off")):
        with pytest.raises(UserError, match=f"^f:1: takes .*{message}"):
            truncate_row(sample, length, image_token_id=model.img_context_token_id, where="f:1")


def test_markers_and_images_must_match(tiny_model):
    with pytest.raises(ValueError, match="1 <image> markers but 2 images"):
        render(tiny_model.tokenizer, TURNS, [1, 1])
