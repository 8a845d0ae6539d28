"""Episodes as rows, and the shipped ones."""

import json
import zlib
from collections import Counter

import pytest
from habitat.episodes import write_episodes
from habitat.navigation import ACTIONS

from internvl.data.annotation import AnnotationFile
from tests.conftest import REPOSITORY

SHIPPED = REPOSITORY / "data" / "habitat_nav"
MOST_BYTES = 12_000_000


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nav")
    write_episodes(folder, 2, 2, size=32)
    return folder


def rows_of(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_same_arguments_give_the_same_bytes(episodes, tmp_path):
    write_episodes(tmp_path, 2, 2, size=32, workers=2)
    files = sorted(file.relative_to(episodes) for file in episodes.rglob("*") if file.is_file())
    assert files == sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file())
    assert all((episodes / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)


@pytest.mark.parametrize("folder", ["made", "shipped"])
def test_rows_can_be_trained_on_and_name_their_scene_episode_and_step(folder, episodes):
    folder = episodes if folder == "made" else SHIPPED
    scenes = {}
    for split in ("train", "val"):
        file = AnnotationFile(folder / f"{split}.jsonl")
        rows = rows_of(folder / f"{split}.jsonl")
        assert len(file) == len(rows) > 0
        for number, row in enumerate(rows):
            (name,) = file.row(number).images
            assert (folder / name).is_file() and row["scene_id"].startswith("room-")
            answer = json.loads(row["conversations"][1]["value"])
            assert answer["action"] in ACTIONS and answer.keys() == {"observation", "thought", "action"}
            goal, _, where = answer["thought"].partition(": ")
            colour, kind = goal.split()
            assert (where == "not in view") != (f"{where.split(',')[0]}: {kind}, {colour}" in answer["observation"])
        scenes[split] = {row["scene_id"] for row in rows}
        steps = Counter((row["episode_id"], row["step"]) for row in rows)
        assert (max(steps.values()) > 1) == (split == "train")  # every goal of a room is asked about in training
    assert not scenes["train"] & scenes["val"]


def test_an_episode_to_be_scored_on_ends_with_its_only_stop(episodes):
    by_episode: dict[str, list[str]] = {}
    for row in rows_of(episodes / "val.jsonl"):
        action = json.loads(row["conversations"][1]["value"])["action"]
        by_episode.setdefault(row["episode_id"], []).append(action)
    assert len(by_episode) == 2
    assert all(actions[-1] == "stop" and actions.count("stop") == 1 for actions in by_episode.values())


def test_the_shipped_episodes_fit_into_what_a_clone_may_cost():
    packed = (zlib.compress(file.read_bytes()) for file in SHIPPED.rglob("*") if file.is_file())  # as git keeps them
    assert sum(map(len, packed)) <= MOST_BYTES
