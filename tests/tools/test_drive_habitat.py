"""Episodes that a policy drives: the teacher, a random walk, a model."""

import json

import numpy as np
import pytest
from drive_habitat import drive_all, main, make_drives, model_policy, random_walk, summarize, teacher

ROOMS = 3


def test_the_teacher_reaches_every_goal_and_a_random_walk_few():
    taught = summarize(drive_all(make_drives(ROOMS, 0), teacher))
    assert taught["success"] == 1 and 0.6 < taught["spl"] <= 1 and taught["faults"] == 0
    walked = summarize(drive_all(make_drives(ROOMS, 0), random_walk(np.random.default_rng(0))))
    assert walked["success"] < 0.8 and walked["spl"] <= walked["success"]


def test_a_policy_that_stops_at_once_or_does_nothing_fails():
    stopped = drive_all(make_drives(2, 0), lambda drives: ["stop"] * len(drives))
    assert [len(drive.actions) for drive in stopped] == [1, 1] and not any(drive.succeeded for drive in stopped)
    idle = drive_all(make_drives(2, 0), lambda drives: ["dance"] * len(drives))
    assert [len(drive.actions) for drive in idle] == [40, 40] and summarize(idle)["success"] == 0


class SayingEngine:
    """Answers as told, and keeps what it was asked."""

    def __init__(self, answers: list[str]):
        self.answers, self.requests = answers, []

    def read(self, image, max_tiles):
        assert image.size == (192, 192) and max_tiles == 1
        return [image]

    def answer(self, requests, **generation):
        self.requests += requests
        return self.answers[: len(requests)]


def test_the_action_of_an_answer_is_done_and_other_answers_are_counted():
    drives = make_drives(3, 0)
    engine = SayingEngine(['{"observation": "", "action": "turn left"}', "turn left", '{"action": "fly"}'])
    assert model_policy(engine)(drives) == ["turn left", "", "fly"]
    assert [drive.faults.total() for drive in drives] == [0, 1, 1]
    assert list(drives[2].faults) == ["no such action: fly"] and list(drives[1].faults) == ["is not JSON"]
    assert drives[0].world.goals[drives[0].goal] in engine.requests[0].question


def test_a_model_drives_by_command(tiny_base, tmp_path, capsys):
    assert main([str(tiny_base), "random", "--rooms", "1", "--json", str(tmp_path / "drive.json")]) == 0
    shown = capsys.readouterr().out
    assert "unseen rooms" in shown and "random" in shown
    record = json.loads((tmp_path / "drive.json").read_text())
    assert record["summary"].keys() == {str(tiny_base), "random"}
    (episode,) = record["episodes"][str(tiny_base)]
    assert len(episode["actions"]) == 40 and sum(episode["faults"].values()) == 40  # it was never taught JSON


def test_no_rooms_are_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main(["teacher", "--rooms", "0"])
    assert end.value.code == 2 and "--rooms: is 0. Give 1 or more." in capsys.readouterr().err
