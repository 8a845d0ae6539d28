"""Captioning a set: batches, shares, memory, and going on after a kill."""

from pathlib import Path

import pytest
import torch

from internvl.errors import UserError
from internvl.evaluation.answers import AnswerLog
from internvl.evaluation.datasets import CaptionSet
from internvl.evaluation.generation import answer_group, generate_captions, process_share

SETTINGS = {"prompt": "Say."}


class Stub:
    """Answers with the picture's number; ``fits`` is the largest batch it has memory for, ``dies_at`` a call."""

    def __init__(self, *, fits: int = 99, dies_at: int | None = None):
        self.fits, self.dies_at, self.calls = fits, dies_at, 0
        self.batches: list[int] = []

    def tiles(self, path: Path) -> torch.Tensor:
        number = int(path.name)
        return torch.full((1 + number % 3, 1), number)

    def answer(self, requests, **generation) -> list[str]:
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        if len(requests) > self.fits:
            raise torch.OutOfMemoryError("out of memory")
        self.batches.append(len(requests))
        return [f"picture {int(request.pictures[0][0])}, 好" for request in requests]


def make_set(number: int) -> CaptionSet:
    return CaptionSet("test", [(index, Path(str(index))) for index in range(number)], {}, Path("gt.json"))


def expected(number: int) -> list[dict]:
    return [{"image_id": index, "caption": f"picture {index}, 好"} for index in range(number)]


@pytest.mark.parametrize(("total", "world"), [(10, 1), (10, 3), (2, 4), (0, 2)])
def test_shares_are_disjoint_and_complete(total, world):
    assert [index for rank in range(world) for index in process_share(total, rank, world)] == list(range(total))


def test_answers_are_in_the_order_of_the_set_whatever_the_batches(tmp_path):
    for batch_size in (1, 2, 5):
        log = AnswerLog(tmp_path / str(batch_size), SETTINGS)
        assert generate_captions(Stub(), make_set(10), log, batch_size=batch_size) == expected(10)


def test_a_batch_too_large_for_the_memory_is_halved(tmp_path):
    engine = Stub(fits=3)
    captions = generate_captions(engine, make_set(30), AnswerLog(tmp_path, SETTINGS), batch_size=10)
    assert captions == expected(30) and max(engine.batches) <= 3 and engine.batches[0] == 2


def test_one_picture_too_large_for_the_memory_is_an_error():
    with pytest.raises(UserError, match="--max-num: one picture of 2 tiles does not fit"):
        answer_group(Stub(fits=0), [(1, torch.zeros(2, 1))], "Say.")


@pytest.mark.parametrize("dies_at", [1, 2, 4, 6])
def test_a_killed_run_goes_on_and_answers_nothing_twice(tmp_path, dies_at):
    with pytest.raises(KeyboardInterrupt):
        generate_captions(Stub(dies_at=dies_at), make_set(20), AnswerLog(tmp_path, SETTINGS), batch_size=3)
    log, engine = AnswerLog(tmp_path, SETTINGS), Stub()
    assert len(log.done) == 3 * (dies_at - 1)
    assert generate_captions(engine, make_set(20), log, batch_size=3) == expected(20)
    assert sum(engine.batches) == 20 - 3 * (dies_at - 1)
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
