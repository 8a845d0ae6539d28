"""What is asked and compared with: registered sets, rows of the training format, and the requests made of them."""

import json

import pytest
import torch

from internvl.errors import UserError
from internvl.evaluation import datasets
from internvl.evaluation.datasets import present_sets, read_caption_set, read_custom_set, read_rows, read_train_sets
from internvl.evaluation.questions import check_media, count_tokens, read_request
from internvl.inference.engine import Engine
from internvl.model.internvl_chat.conversation import Turn
from tests.conftest import make_image


def write_rows(folder, rows) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def row(*texts: str, **media) -> dict:
    roles = ("human", "gpt")
    return {"conversations": [{"from": roles[k % 2], "value": text} for k, text in enumerate(texts)], **media}


@pytest.fixture
def rows(tmp_path):
    """Rows of all four kinds; the first image has three captions, and one row has two questions."""
    for k in range(3):
        make_image(120, 60 + k, k).save(tmp_path / f"{k}.png")
    frames = tmp_path / "film"
    frames.mkdir()
    for k in range(20):
        make_image(60, 60, k).save(frames / f"frame_{k}.png")
    write_rows(
        tmp_path,
        [
            row("<image>\nDescribe.", "a first", image="0.png"),
            row("What is 1 + 1?", "2"),
            row("<image>\nDescribe.", "a second", image="0.png"),
            row("<image>\nWhat is it?", "waves", "And <image>?", "more waves", image=["1.png", "2.png"]),
            row("<video>\nWhat happens?", "nothing", video="film", clip=[4, 12]),
            row("Describe.", "a third", image="0.png"),
        ],
    )
    return tmp_path


@pytest.fixture
def engine(tiny_model) -> Engine:
    return Engine(tiny_model.model, tiny_model.tokenizer, max_tiles=6)


def test_rows_that_ask_the_same_are_one_question_with_several_references(rows):
    data = read_custom_set(rows / "rows.jsonl", rows)
    assert data.references() == {
        1: ["a first", "a second", "a third"],
        2: ["2"],
        3: ["waves"],
        4: ["more waves"],
        5: ["nothing"],
    }
    later = data.questions[3]
    assert later.images == (rows / "1.png", rows / "2.png") and data.questions[2].images == (rows / "1.png",)
    assert [turn.role for turn in later.turns] == ["human", "gpt", "human"]
    assert later.turns[1].value == "waves", "the answer before is the one that was written"
    assert data.questions[4].media() == {"video": str(rows / "film")}


def test_requests_have_the_images_of_training_and_lengths_are_known_before(rows, engine):
    data = read_custom_set(rows / "rows.jsonl", rows)
    sizes = check_media(data.questions)
    lengths = count_tokens(engine, data.questions, sizes, num_frames=4)
    requests = [read_request(engine, question, 4) for question in data.questions]
    # 120 × 60: two tiles and a thumbnail; of two images each has a limit of 3; frames are one tile each.
    assert [[len(tiles) for tiles in request.images] for request in requests] == [
        [3],
        [],
        [3],
        [3, 3],
        [1, 1, 1, 1],
    ]
    assert requests[4].turns()[0].value.startswith("Frame1: <image>\nFrame2: <image>")
    open_answer = len(engine.tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"])
    for request, length in zip(requests, lengths, strict=True):
        prompt = engine.model.render_prompt(request.turns(), [len(tiles) for tiles in request.images])
        assert len(engine.tokenizer(prompt)["input_ids"]) == length + open_answer
    clip = requests[4].images
    assert torch.equal(clip[0].tiles, engine.read(rows / "film" / "frame_4.png", 1).tiles), "the clip starts at 4 s"
    mixed = engine.answer(requests, max_new_tokens=4, do_sample=False)
    alone = [engine.answer([request], max_new_tokens=4, do_sample=False)[0] for request in requests]
    assert mixed == alone


def test_training_rows_by_their_meta_file(rows_folder):
    (data,) = read_train_sets(rows_folder / "meta.json")
    assert data.name == "train-rows" and data.ground_truth_file is None
    assert sum(len(captions) for captions in data.references().values()) == 24


def test_a_registered_set_of_rows_and_one_with_its_own_prompt(rows, monkeypatch):
    (rows / "list.json").write_text('[{"image": "0.png"}, {"image": "1.png"}]')
    truth = {"images": [{"id": 0}, {"id": 1}], "annotations": [{"image_id": k, "caption": "c"} for k in (0, 1)]}
    (rows / "truth.json").write_text(json.dumps(truth))
    entry = {"root": ".", "annotation": "rows.jsonl", "max_new_tokens": 9}
    own = {"root": ".", "annotation": "list.json", "ground_truth": "truth.json", "prompt": "Why?"}
    registry = rows / "registry.json"
    registry.write_text(json.dumps({"mine": entry, "own": own, "absent": {**own, "ground_truth": "no.json"}}))
    monkeypatch.setattr(datasets, "REGISTRY", registry)
    monkeypatch.setattr(datasets, "REPOSITORY", rows)
    data = read_caption_set("mine")
    assert (len(data.questions), data.min_new_tokens, data.max_new_tokens) == (5, 1, 9)
    assert read_caption_set("own").questions[1].turns == (Turn("human", "<image>\nWhy?"),)
    assert read_caption_set("own", "How?").questions[0].turns[0].value == "<image>\nHow?"
    present, absent = present_sets()
    assert present == ["mine", "own"] and "absent is left out: " in absent[0] and "no.json is not there" in absent[0]
    registry.write_text(json.dumps({"mine": {"root": ".", "annotations": "rows.jsonl"}}))
    with pytest.raises(UserError, match=r"registry.json:mine\.annotations: is not a key of an entry\. Use one of"):
        read_caption_set("mine")
    registry.write_text(json.dumps({"mine": ["rows.jsonl"]}))
    with pytest.raises(UserError, match="registry.json:mine: is .*Give an object with root and annotation"):
        read_caption_set("mine")
    registry.write_text(json.dumps({"mine": {"root": "."}}))
    with pytest.raises(UserError, match=r"registry.json:mine\.annotation: is missing\. Give a text in quotes"):
        read_caption_set("mine")


def test_mistakes_are_named_with_file_and_line(rows):
    with pytest.raises(UserError, match="nope.jsonl: there is no such file"):
        read_rows("x", [rows / "nope.jsonl"], rows)
    with pytest.raises(UserError, match="--root: .*nowhere is not a folder"):
        read_custom_set(rows / "rows.jsonl", rows / "nowhere")
    write_rows(rows, [row("Hello?", "hi"), row("<image>\nA?", "b", image="../out.png"), {"conversations": []}])
    with pytest.raises(UserError) as raised:
        read_custom_set(rows / "rows.jsonl", rows)
    first, second = str(raised.value).splitlines()
    assert "rows.jsonl:2: '../out.png' leads out of" in first and "rows.jsonl:3: conversations is []" in second
    write_rows(rows, [row("<image>\nA?", "b", image=f"missing_{k}.png") for k in range(9)])
    with pytest.raises(UserError, match=r"rows.jsonl:1: .*missing_0.png: there is no such image[\s\S]*and 4 more"):
        check_media(read_custom_set(rows / "rows.jsonl", rows).questions)
    (rows / "rows.jsonl").write_text("\n")
    with pytest.raises(UserError, match="rows.jsonl: holds no rows"):
        read_custom_set(rows / "rows.jsonl", rows)
