"""Rows that share a tree of prefixes train with the loss and the gradients of rows alone."""

import json

import pytest
import torch

from tests.train.one_step import Way, assert_equal, step

FRAMES = [f"frame{number}.png" for number in range(6)]


def turns(*texts: str, **fields) -> list[dict]:
    return [{"from": ("human", "gpt")[number % 2], "value": text, **fields} for number, text in enumerate(texts)]


def questions_and_answers() -> list[dict]:
    """Three questions about a frame, each with three answers: the image, then the question."""
    long = "How many colours and waves and patterns has it, and has it plus one or many? "
    questions = [f"<image>\n{long * 2}{end}" for end in ("Count them.", "Say it again.", "Describe it.")]
    answers = ["Pattern has waves.", "many waves", "Pattern 3"]
    return [
        {"image": "1.png", "conversations": turns(question, answer)} for question in questions for answer in answers
    ]


def turns_of_a_conversation() -> list[dict]:
    """A conversation after one, two and three turns: earlier answers are learned in all of them."""
    texts = [f"<image>\n{'Describe it. ' * 3}", "Pattern has waves.", "And plus one?", "has 3.", "Count.", "many"]
    return [{"image": "2.png", "conversations": turns(*texts[:end])} for end in (2, 4, 6)]


def forks_of_a_conversation() -> list[dict]:
    """Conversations that part in the second question and, beneath it, in the third."""
    start = (f"<image>\n{'Describe it. ' * 4}", "Pattern has waves. " * 4)
    second = ("How many colours? " * 4, "many colours")
    return [
        {"image": "2.png", "conversations": turns(*start, *second, "And plus one?", "has 3.")},
        {"image": "2.png", "conversations": turns(*start, *second, "And waves?", "many waves")},
        {"image": "2.png", "conversations": turns(*start, "Compare them.", "waves")},
        {"image": "2.png", "conversations": turns(*start)},
    ]


def growing_histories() -> list[dict]:
    """Frames 1 to t in one question, for t of 1 to 6, and another answer at the last."""
    names = FRAMES
    rows = [
        {"image": names[:end], "conversations": turns("<image>\n" * end + "What is it?", "waves " * end)}
        for end in range(1, 7)
    ]
    return [*rows, {"image": names, "conversations": turns("<image>\n" * 6 + "What is it?", "Pattern")}]


def growing_conversations() -> list[dict]:
    """A frame a turn: the history of t turns begins that of t + 1."""
    texts = [text for number in range(4) for text in ("<image>\nWhat is it?", f"Pattern {number} has waves.")]
    names = FRAMES[:4]
    return [{"image": names[:end], "conversations": turns(*texts[: 2 * end])} for end in range(1, 5)]


def histories_that_part() -> list[dict]:
    """Two ways on from the same two frames, and rows that are there twice."""
    ways = [[FRAMES[number] for number in way] for way in ((0, 1, 2), (0, 1, 1), (0, 2))]
    rows = [
        {"image": names, "conversations": turns("<image>" * len(names) + "\nWhat is it?", answer)}
        for names in ways
        for answer in ("Pattern has waves.", "many")
    ]
    return rows + rows[:2]


def weighted_turns() -> list[dict]:
    """A conversation of which the rows learn different answers, with different weights."""
    texts = ["<image>\nDescribe it.", "Pattern has waves.", "And plus one?", "has 3.", "Count.", "many"]
    rows = [{"image": "1.png", "weight": 2.5 - end / 4, "conversations": turns(*texts[:end])} for end in (2, 4, 6)]
    rows[1]["conversations"][1]["loss"] = False
    rows[2]["conversations"][3]["weight"] = 0.3
    return rows


SHAPES = {
    shape.__name__: shape
    for shape in (
        questions_and_answers, turns_of_a_conversation, forks_of_a_conversation, growing_histories,
        growing_conversations, histories_that_part, weighted_turns,
    )
}  # fmt: skip
# Tokens of the tree, as a share of those of the rows alone.
MOST_TOKENS = {
    "questions_and_answers": 0.5, "turns_of_a_conversation": 0.6, "forks_of_a_conversation": 0.6,
    "growing_histories": 0.55, "growing_conversations": 0.6, "histories_that_part": 0.8, "weighted_turns": 0.8,
}  # fmt: skip


@pytest.fixture
def rows_of(tmp_path):
    def write(shape: str):
        path = tmp_path / f"{shape}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in SHAPES[shape]()))
        return path

    return write


@pytest.mark.parametrize("member", ["internlm2", "qwen3"])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_of_a_tree_equal_those_of_rows_alone(shape, member, rows_of, model_and_data):
    rows = rows_of(shape)
    plain = step(*model_and_data(member=member, rows=rows), Way())
    for way in (Way(share=True, batch_size=16), Way(share=True, packed=True, batch_size=16, recompute=1)):
        shared = step(*model_and_data(member=member, rows=rows), way)
        assert_equal(shared, plain)
        assert shared[2] <= MOST_TOKENS[shape] * step(*model_and_data(member=member, rows=rows), Way(packed=True))[2]


def test_the_encoder_learns_from_each_frame_once(rows_of, model_and_data):
    """Histories share frames: those of the tree are encoded once, with LoRA on the encoder, too."""
    rows = rows_of("growing_histories")
    plain = step(*model_and_data(vit=4, rows=rows), Way())
    assert_equal(step(*model_and_data(vit=4, rows=rows), Way(share=True, batch_size=16)), plain)
    _, _, data = model_and_data(rows=rows)
    alone, together = data[len(data) - 1], data[group_of(data)]
    assert len(together.images) == len(alone.images) == 6 and len(together.rows) == len(data)


def group_of(data):
    from internvl.data.sampling import SampleGroup

    return SampleGroup(tuple(range(len(data))), 0)


def test_a_row_whose_frame_cannot_be_read_leaves_the_others(rows_of, captions, model_and_data, tmp_path):
    rows = rows_of("growing_histories")
    _, _, data = model_and_data(rows=rows)
    data.on_bad_sample = "skip"
    data.specs[0] = data.files[0][0]
    (tmp_path / "images").mkdir()
    for name in FRAMES:
        (tmp_path / "images" / name).write_bytes((captions / name).read_bytes())
    (tmp_path / "images" / FRAMES[2]).write_bytes(b"no image")
    object.__setattr__(data.specs[0], "root", tmp_path / "images")
    sample = data[group_of(data)]
    assert len(sample.rows) == 2 and len(sample.skipped) == 5
    assert all(FRAMES[2] in bad.reason and bad.where not in sample.rows for bad in sample.skipped)
    assert torch.equal(sample.input_ids[:3], data[0].input_ids[:3])


@pytest.mark.parametrize("shape", ["turns_of_a_conversation", "growing_conversations"])
def test_whole_weights_equal_repeated_rows_in_a_tree(shape, rows_of, model_and_data, tmp_path):
    path = rows_of(shape)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    weights = [3, 1, 2, 2][: len(rows)]
    files = {"weighted": [{**row, "weight": weight} for row, weight in zip(rows, weights, strict=True)]}
    files["repeated"] = [row for row, weight in zip(rows, weights, strict=True) for _ in range(weight)]
    for name, written in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    alone = step(*model_and_data(rows=tmp_path / "repeated.jsonl"), Way())
    for name in files:
        way = Way(share=True, batch_size=16)
        assert_equal(step(*model_and_data(rows=tmp_path / f"{name}.jsonl"), way), alone, of_loss=1e-6)


def test_a_turn_of_weight_0_is_shared_and_not_learned(rows_of, model_and_data, tmp_path):
    rows = [json.loads(line) for line in rows_of("turns_of_a_conversation").read_text().splitlines()][1:]
    for row in rows:
        row["conversations"][1]["loss"] = False
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, _, data = model_and_data(rows=tmp_path / "rows.jsonl")
    whole = step(*model_and_data(rows=tmp_path / "rows.jsonl"), Way())
    assert_equal(step(*model_and_data(rows=tmp_path / "rows.jsonl"), Way(share=True, batch_size=16)), whole)
    sample = data[group_of(data)]
    learned = sample.labels[sample.labels != -100].tolist()
    assert learned == [
        label for label in data[1].labels.tolist() if label != -100
    ]  # the second answer once, the third
    assert sample.weights is not None and sample.weights.sum() < 2 * len(learned)
