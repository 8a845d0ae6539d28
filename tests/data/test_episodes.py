"""Episodes of agents and questions about scenes: each published form, good and damaged, made by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from internvl.commands import convert_annotations
from internvl.data.annotation import AnnotationFile
from internvl.data.episodes import EpisodeOptions, evenly, window

NEXT = '{"observation": "a door", "thought": "it is open", "action": "move forward"}'


def frames(folder, count, *, depth=False, suffix="png"):
    """``count`` frames, each of a colour of its own, and depth of its number in metres."""
    (folder / "images" / "rgb").mkdir(parents=True)
    (folder / "images" / "depth").mkdir()
    for number in range(count):
        Image.new("RGB", (32, 24), (number, 9, 9)).save(folder / "images" / "rgb" / f"{number:04d}.{suffix}")
        if depth:
            metres = np.full((24, 32), 1000 * number, np.uint16)
            Image.fromarray(metres).save(folder / "images" / "depth" / f"{number:04d}.png")


def qa(question, answer, **fields):
    turns = [{"from": "human", "value": question}, {"from": "gpt-4o-mini", "value": answer}]
    return {**fields, "answer": turns}


@pytest.fixture
def episode(tmp_path):
    folder = tmp_path / "all" / "ep_07"
    frames(folder, 4, depth=True)
    content = [
        qa(f"<image>\nStep {number}?", f"I see.\n```json\n{NEXT}\n```", id=f"ep_07_{number}") for number in range(4)
    ]
    (folder / "qa_CoT.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def convert(tmp_path, capsys):
    """``convert(path, format, flag, …)`` returns the rows, which a training would read, or what is said instead."""

    def run(path, name, *flags, fails=False):
        out = tmp_path / "out.jsonl"
        given = [str(path), str(out), "--from", name, "--root", str(tmp_path / "all"), "--overwrite", *flags]
        if fails:
            with pytest.raises(SystemExit, match="2"):
                convert_annotations.main(given)
            return capsys.readouterr().err
        convert_annotations.main(given)
        file = AnnotationFile(out)
        assert all(file.row(index) for index in range(len(file)))
        return [json.loads(line) for line in out.read_text().splitlines()]

    return run


@pytest.mark.parametrize(
    ("number", "history", "every", "expected"),
    [(5, 0, 1, [5]), (5, 3, 1, [2, 3, 4, 5]), (5, 3, 2, [1, 3, 5]), (1, 3, 1, [0, 1]), (0, 8, 3, [0])],
)
def test_a_window_always_has_the_last_frame_and_counts_back_from_it(number, history, every, expected):
    assert window(number, EpisodeOptions(history=history, every=every)) == expected


def test_frames_of_a_scene_are_chosen_evenly():
    assert evenly(3, 8) == [0, 1, 2] and evenly(100, 4) == [12, 37, 62, 87]


def test_an_episode_is_a_row_a_frame_with_its_history(episode, convert):
    rows = convert(episode.parent, "episodes", "--history", "2")
    names = [f"ep_07/images/rgb/{number:04d}.png" for number in range(4)]
    assert [row["image"] for row in rows] == [names[0], names[:2], names[:3], names[1:4]]
    assert rows[3]["conversations"][0]["value"] == "<image>\n" * 3 + "Step 3?"
    assert (rows[3]["episode_id"], rows[3]["step"]) == ("ep_07", 3) and NEXT in rows[3]["conversations"][1]["value"]


def test_answers_as_json_are_the_object_alone(episode, convert):
    rows = convert(episode, "episodes", "--answers", "json")
    assert [json.loads(row["conversations"][1]["value"])["action"] for row in rows] == ["move forward"] * 4
    content = json.loads((episode / "qa_CoT.json").read_text())
    content[2]["answer"][1]["value"] = '{"action": '
    (episode / "qa_CoT.json").write_text(json.dumps(content))
    said = convert(episode, "episodes", "--answers", "json", fails=True)
    assert "qa_CoT.json:frame 2" in said and "no object with an action" in said
    assert len(convert(episode, "episodes", "--answers", "json", "--skip-bad")) == 3


def test_an_episode_may_be_one_growing_conversation_with_depth(episode, convert):
    [row] = convert(episode, "episodes", "--conversation", "--depth", "--depth-range", "1", "3")
    assert len(row["image"]) == 8 and len(row["conversations"]) == 8
    assert row["conversations"][2]["value"] == "<image>\n<image>\nStep 1?"
    shown = [np.asarray(Image.open(episode.parent / name))[0, 0] for name in row["image"][1::2]]
    assert shown == [0, 0, 128, 255]  # 0 and 1 m are black, 2 m is between, 3 m is white


def test_ids_name_the_frames_where_there_are_fewer_questions(episode, convert):
    (episode / "qa_CoT.json").write_text(json.dumps(qa("Why?", "So.", id="ep_07_0002")))
    [row] = convert(episode, "episodes")
    assert row["image"] == "ep_07/images/rgb/0002.png" and row["step"] == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ('{"id": 1, "answer": [{"from": "human", "value": "Why?"}]}', "Give {"),
        ('{"id": "other_9", "answer": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}', "name none"),
    ],
)
def test_a_damaged_episode_is_named(content, words, episode, convert):
    (episode / "qa_CoT.json").write_text(content)
    said = convert(episode, "episodes", fails=True)
    assert "ep_07/qa_CoT.json" in said and words in said


def test_depth_of_eight_bits_and_none_at_all_are_refused(episode, convert):
    Image.new("L", (4, 4)).save(episode / "images" / "depth" / "0000.png")
    assert "has the mode L, and depth is 16 bits" in convert(episode, "episodes", "--depth", fails=True)
    (episode / "images" / "depth" / "0000.png").unlink()
    assert "Copy the depth images, or leave out --depth" in convert(episode, "episodes", "--depth", fails=True)


def test_steps_of_navid_have_their_frames(tmp_path, convert):
    file = tmp_path / "navid.json"
    step = {"video_id": "v1", "q": "<video>\nGo to the door.", "a": "The next action is move forward 75 cm."}
    file.write_text(json.dumps([{**step, "frames": ["0.jpg", "1.jpg", "2.jpg"]}, {**step, "frames": ["x/9.jpg"]}]))
    rows = convert(file, "navid")
    assert rows[0]["image"] == ["v1/0.jpg", "v1/1.jpg", "v1/2.jpg"] and rows[1]["image"] == "x/9.jpg"
    assert rows[0]["conversations"][0]["value"] == "<image>\n" * 3 + "Go to the door."
    assert convert(file, "navid", "--history", "1")[0]["image"] == ["v1/1.jpg", "v1/2.jpg"]
    file.write_text(json.dumps([{**step, "frames": []}]))
    assert "item 1: is " in (said := convert(file, "navid", fails=True)) and "a list of frames" in said


def test_trajectories_of_streamvln_are_a_row_a_step(tmp_path, convert):
    for number in range(3):
        folder = tmp_path / "all" / "images" / "t1" / "rgb"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / f"{number:03d}.jpg")
    file = tmp_path / "annotations.json"
    item = {"id": 5, "video": "images/t1", "instructions": ["Go left.", "Left!"], "actions": [-1, 2, 1, 0]}
    file.write_text(json.dumps([item]))
    rows = convert(file, "streamvln", "--history", "1", "--future", "1")
    assert [row["conversations"][1]["value"] for row in rows[:3]] == [
        "turn left, move forward",
        "move forward, stop",
        "stop",
    ]
    assert len(rows) == 6 and rows[4]["image"] == ["images/t1/rgb/000.jpg", "images/t1/rgb/001.jpg"]
    assert (rows[4]["episode_id"], rows[4]["step"]) == ("5", 1) and "Left!" in rows[4]["conversations"][0]["value"]
    for actions in ([-1, 9], [2, 1, 1, 0]):
        file.write_text(json.dumps([{**item, "actions": actions}]))
        assert "a frame and a known action for each step" in convert(file, "streamvln", fails=True)


@pytest.mark.parametrize(
    ("name", "item", "answers", "scene"),
    [
        ("openeqa", {"question": "What?", "answer": "A red sofa", "episode_history": "hm3d-v0/000"}, 1, "hm3d-v0/000"),
        ("scanqa", {"question": "Where?", "answers": ["left", "to the left"], "scene_id": "scene00"}, 2, "scene00"),
        ("scanqa", {"situation": "I sit.", "question": "A?", "answers": [{"answer": "b"}], "scene_id": "s1"}, 1, "s1"),
    ],
)  # fmt: skip
def test_questions_about_scenes_show_frames_of_them(name, item, answers, scene, tmp_path, convert):
    folder = tmp_path / "all" / scene
    folder.mkdir(parents=True)
    for number in range(20):
        Image.new("RGB", (8, 8)).save(folder / f"{number}-rgb.png")
    file = tmp_path / "questions.json"
    file.write_text(json.dumps([item]))
    rows = convert(file, name, "--frames", "4")
    assert len(rows) == answers and rows[0]["scene_id"] == scene
    assert rows[0]["image"] == [f"{scene}/{number}-rgb.png" for number in (2, 7, 12, 17)]
    assert rows[0]["conversations"][0]["value"].endswith(f"{item.get('situation', '')} {item['question']}".strip())
    file.write_text(json.dumps([{**item, "scene_id": "none", "episode_history": "none"}]))
    assert "there are no frames in" in convert(file, name, fails=True)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--history", "-1"), "--history: is -1. Give a whole number from 0"),
        (("--every", "0"), "--every: is 0. Give a whole number from 1"),
        (("--depth-range", "5", "1"), "--depth-range: is 5 1. Give two numbers of metres"),
        (("--future", "2"), "--future: has no effect on --from episodes, only on streamvln"),
    ],
)
def test_flags_of_frames_that_cannot_be_are_refused(flags, words, episode, convert):
    assert words in convert(episode, "episodes", *flags, fails=True)


def test_a_folder_without_episodes_is_named(tmp_path, convert):
    assert "holds no qa_CoT.json" in convert(tmp_path, "episodes", fails=True)
