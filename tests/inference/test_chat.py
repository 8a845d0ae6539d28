"""Conversations: answers are those of the engine, media stay with their turns, and a saved row can be trained on."""

import json
import threading

import pytest

from internvl.data.annotation import parse_row
from internvl.errors import UserError
from internvl.inference.chat import ChatSession, ChatSettings, LocalTalker, ServerTalker
from internvl.inference.client import ServerClient
from internvl.inference.engine import Engine
from internvl.inference.requests import Request
from internvl.model.internvl_chat.conversation import Turn
from tests.conftest import make_image
from tests.inference.fake_server import FakeServer, running

SETTINGS = ChatSettings(max_new_tokens=8, max_tiles=4, num_frames=2)
GREEDY = {"max_new_tokens": 8, "do_sample": False}


@pytest.fixture(scope="module")
def engine(tiny_base):
    return Engine.load(tiny_base, precision="fp32", device="cpu", max_tiles=4)


@pytest.fixture
def session(engine):
    return ChatSession(LocalTalker(engine), SETTINGS)


@pytest.fixture
def images(tmp_path):
    for number, size in enumerate([(60, 60), (150, 60), (60, 200)]):
        make_image(*size, number).save(tmp_path / f"{number}.png")
    return [tmp_path / f"{number}.png" for number in range(3)]


def answer(session, text: str) -> str:
    return "".join(session.ask(text)).strip()


def test_the_pieces_are_the_engines_answer(session, engine, images):
    session.attach_images(images[:2])
    pieces = list(session.ask("Compare."))
    assert len(pieces) > 1
    expected = engine.answer([Request([engine.read(path) for path in images[:2]], "Compare.")], **GREEDY)[0]
    assert "".join(pieces).strip() == expected == session.turns[-1].value


def test_later_questions_see_the_turns_and_images_before(session, engine, images):
    session.system = "Be brief."
    session.attach_images(images[:1])
    first = answer(session, "What?")
    session.attach_images(images[1:2])
    second = answer(session, "And this: <image>?")
    turns = [
        Turn("system", "Be brief."), Turn("human", "<image>\nWhat?"), Turn("gpt", first),
        Turn("human", "And this: <image>?"),
    ]  # fmt: skip
    request = Request([engine.read(path) for path in images[:2]], turns)
    assert second == engine.answer([request], **GREEDY)[0]


def test_a_video_is_frames_between_images(session, engine, images, tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(4):
        make_image(80, 60, number).save(frames / f"frame_{number}.png")
    session.attach_images(images[:1])
    session.attach_video(frames)
    got = answer(session, "<video> or <image>?")
    chosen = [frames / "frame_1.png", frames / "frame_3.png"]  # the middles of two halves
    request = Request(
        [*(engine.read(path, 1) for path in chosen), engine.read(images[0])],
        [Turn("human", "Frame1: <image>\nFrame2: <image> or <image>?")],
    )
    assert got == engine.answer([request], **GREEDY)[0]


def test_a_second_try_replaces_the_first_and_keeps_its_images(session, images):
    session.attach_images(images[:1])
    first = answer(session, "What?")
    turns = list(session.turns)
    assert "".join(session.retry()).strip() == first and session.turns == turns
    assert [one.path for one in session.attachments] == images[:1]
    session.clear()
    assert not session.turns and not session.attachments
    with pytest.raises(UserError, match="/retry: nothing has been asked yet"):
        session.retry()


def test_an_answer_that_is_cut_off_leaves_the_conversation_as_it_was(session, images):
    session.attach_images(images[:1])
    pieces = session.ask("What?")
    next(pieces)
    pieces.close()
    assert not session.turns and len(session.waiting) == 1
    assert not any(thread.name == "generate" for thread in threading.enumerate())
    assert answer(session, "What?")


def test_what_is_added_after_an_answer_is_not_part_of_its_second_try(session, images):
    session.attach_images(images[:1])
    first = answer(session, "What?")
    session.attach_images(images[1:2])
    assert "".join(session.retry()).strip() == first
    assert [one.path for one in session.attachments] == images[:1] and [one.path for one in session.waiting] == images[
        1:2
    ]
    assert answer(session, "And this?")


@pytest.mark.parametrize(("text", "message"), [("<image> <image>", "marks 2 images and 0 videos, and 1 and 0")])
def test_marks_and_images_that_do_not_agree_are_refused(session, images, text, message):
    session.attach_images(images[:1])
    with pytest.raises(UserError, match=message):
        answer(session, text)


def test_a_missing_image_is_named_and_none_is_added(session, images):
    with pytest.raises(UserError, match=r"none.png"):
        session.attach_images([images[0], images[0].with_name("none.png")])
    assert not session.waiting


def test_a_saved_conversation_is_a_row_to_train_on(session, images, tmp_path):
    session.system = "Be brief."
    session.attach_images(images[:2])
    answer(session, "Compare.")
    session.save(tmp_path / "rows.jsonl")
    session.save(tmp_path / "rows.jsonl")
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    row = parse_row(json.loads(lines[0]), "here")
    assert row.images == tuple(map(str, images[:2])) and [turn.role for turn in row.turns] == [
        "system",
        "human",
        "gpt",
    ]


def test_a_server_answers_as_the_model_does(session, engine, images):
    with running(FakeServer({"tuned": engine})) as url:
        remote = ChatSession(ServerTalker(ServerClient(url), "tuned"), SETTINGS)
        for one in (session, remote):
            one.attach_images(images[:2])
        assert answer(remote, "Compare.") == answer(session, "Compare.")
        assert answer(remote, "Why?") == answer(session, "Why?")


def test_what_goes_wrong_while_generating_is_raised_where_it_is_read(session, monkeypatch):
    def fail(*args, **kwargs):
        raise UserError("broken")

    monkeypatch.setattr(session.talker.engine, "answer", fail)
    with pytest.raises(UserError, match="broken"):
        answer(session, "What?")
