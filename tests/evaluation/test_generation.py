"""Captioning a set: batches, shares, memory, and going on after a kill."""

import pytest
import torch

from internvl.errors import UserError
from internvl.evaluation import generation
from internvl.evaluation.answers import AnswerLog
from internvl.evaluation.datasets import CaptionSet
from internvl.evaluation.generation import answer_batch, generate_captions
from internvl.evaluation.questions import Question
from internvl.inference.engine import Request
from internvl.model.internvl_chat.conversation import Turn

SETTINGS = {"prompt": "Say."}


class Stub:
    """Answers with the image's number; ``fits`` is the largest batch it has memory for, ``dies_at`` a call."""

    def __init__(self, *, fits: int = 99, dies_at: int | None = None):
        self.fits, self.dies_at, self.calls = fits, dies_at, 0
        self.batches: list[list[int]] = []

    def answer(self, requests, **generation) -> list[str]:
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        if len(requests) > self.fits:
            raise torch.OutOfMemoryError("out of memory")
        self.batches.append([len(request.images[0]) for request in requests])
        return [f"image {int(request.images[0][0])}, 好" for request in requests]


def tiles_of(number: int) -> int:
    return 1 + number % 3


@pytest.fixture(autouse=True)
def stub_images(monkeypatch):
    """Question n has an image of 1 to 3 tiles, 10 tokens each, that holds the number n."""
    monkeypatch.setattr(
        generation,
        "count_tokens",
        lambda engine, questions, *_: [10 * tiles_of(question.id) for question in questions],
    )
    monkeypatch.setattr(
        generation,
        "read_request",
        lambda engine, question, _: Request([torch.full((tiles_of(question.id), 1), question.id)], "Say."),
    )


def make_set(number: int) -> CaptionSet:
    return CaptionSet("test", [Question(index, (Turn("human", "Say."),), "test") for index in range(number)], {})


def expected(number: int) -> list[dict]:
    return [{"image_id": index, "caption": f"image {index}, 好"} for index in range(number)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_shares_of_several_processes_are_disjoint_complete_and_alike_in_size(world_size, tmp_path, monkeypatch):
    rank, gathered = 0, []

    def gather(captions):
        gathered.extend(captions)
        return list(gathered)

    monkeypatch.setattr(generation, "rank_and_world_size", lambda: (rank, world_size))
    monkeypatch.setattr(generation, "gather_lists", gather)
    tiles = []
    for rank in range(world_size):
        engine, log = Stub(), AnswerLog(tmp_path / f"{rank}", SETTINGS, rank=rank)
        if rank < world_size - 1:
            with pytest.raises(KeyError):  # the others' answers are not there yet
                generate_captions(engine, make_set(30), {}, log, batch_size=4)
        else:
            assert generate_captions(engine, make_set(30), {}, log, batch_size=4) == expected(30)
        tiles.append(sum(sum(batch) for batch in engine.batches))
    assert sum(tiles) == 60 and max(tiles) - min(tiles) <= 3


def test_answers_are_in_the_order_of_the_set_whatever_the_batches(tmp_path):
    for batch_size in (1, 2, 5):
        log = AnswerLog(tmp_path / str(batch_size), SETTINGS)
        assert generate_captions(Stub(), make_set(10), {}, log, batch_size=batch_size) == expected(10)


def test_a_batch_too_large_for_the_memory_is_halved(tmp_path):
    engine = Stub(fits=3)
    captions = generate_captions(engine, make_set(30), {}, AnswerLog(tmp_path, SETTINGS), batch_size=10)
    assert captions == expected(30) and max(map(len, engine.batches)) <= 3 and len(engine.batches[0]) == 2


def test_one_image_too_large_for_the_memory_is_an_error():
    with pytest.raises(UserError, match="--max-num: one question with 2 tiles does not fit"):
        answer_batch(Stub(fits=0), [Request([torch.zeros(2, 1)], "Say.")])


def test_the_longest_come_first_and_batches_stay_within_their_tokens(tmp_path):
    engine = Stub()
    log = AnswerLog(tmp_path, SETTINGS)
    generate_captions(engine, make_set(30), {}, log, batch_size=8, batch_tokens=120, max_new_tokens=5, num_beams=2)
    # (10 tokens a tile + 5 new) × 2 beams: 70, 50 and 30 tokens.
    assert [len(batch) for batch in engine.batches] == [1] * 10 + [2] * 5 + [4, 4, 2]
    assert [batch[0] for batch in engine.batches] == [3] * 10 + [2] * 5 + [1] * 3


@pytest.mark.parametrize("dies_at", [1, 2, 4, 6])
def test_a_killed_run_goes_on_and_answers_nothing_twice(tmp_path, dies_at):
    with pytest.raises(KeyboardInterrupt):
        generate_captions(Stub(dies_at=dies_at), make_set(20), {}, AnswerLog(tmp_path, SETTINGS), batch_size=3)
    log, engine = AnswerLog(tmp_path, SETTINGS), Stub()
    assert len(log.done) == 3 * (dies_at - 1)
    assert generate_captions(engine, make_set(20), {}, log, batch_size=3) == expected(20)
    assert sum(map(len, engine.batches)) == 20 - 3 * (dies_at - 1)
    log.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_line_cut_off_by_a_kill_is_answered_again(tmp_path):
    log = AnswerLog(tmp_path, SETTINGS)
    log.add({1: "one", 2: "two, 好"})
    log.close()
    (file,) = log.folder.iterdir()
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        log = AnswerLog(tmp_path, SETTINGS)
        assert log.done.items() <= {1: "one", 2: "two, 好"}.items()
        log.add({3: "three"})
        log.close()
        assert AnswerLog(tmp_path, SETTINGS).done[3] == "three"


def test_answers_of_all_processes_are_found_and_those_of_other_settings_are_not(tmp_path):
    for rank in range(3):
        AnswerLog(tmp_path, SETTINGS, rank=rank).add({rank: f"answer {rank}"})
    assert AnswerLog(tmp_path, SETTINGS).done == {0: "answer 0", 1: "answer 1", 2: "answer 2"}
    assert AnswerLog(tmp_path, {"prompt": "Other."}).done == {}
