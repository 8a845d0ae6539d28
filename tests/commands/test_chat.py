"""The chat command: piped it prints the answer alone, and inside its commands do what they say."""

import subprocess

import pytest

from internvl.commands import chat
from internvl.errors import UserError
from internvl.inference.engine import Engine, Request
from tests.conftest import make_image


@pytest.fixture
def picture(tmp_path):
    make_image(90, 60, 2).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_a_piped_question_gets_the_answer_alone(warm_python, repository, tiny_base, picture):
    command = [warm_python, "tools/chat.py", tiny_base, "--image", picture, "--max-new-tokens", "8"]
    done = subprocess.run(
        [*map(str, command)], cwd=repository, input="What is this?\n", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    engine = Engine.load(tiny_base, precision="fp32", device="cpu", max_tiles=12)
    request = Request([engine.read(picture)], "What is this?")
    assert done.stdout.strip() == engine.answer([request], max_new_tokens=8, do_sample=False)[0]


def test_nothing_piped_is_a_mistake_that_is_said_before_anything_is_loaded(warm_python, repository):
    command = [warm_python, "tools/chat.py", "nowhere"]
    done = subprocess.run([*map(str, command)], cwd=repository, input="", capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: standard input: is empty")


@pytest.fixture
def session(tiny_base):
    return chat.open_session(chat.make_parser().parse_args([str(tiny_base), "--max-new-tokens", "6"]))


def test_a_terminal_session(session, picture, monkeypatch, capsys, tmp_path):
    lines = iter([
        f"/image '{picture}'", "What?", "/retry", "/tiles 2", "/system Be brief.", "/image none.png", "/tiles x",
        f"/save {tmp_path / 'rows.jsonl'}", "/clear", "", "/quit",
    ])  # fmt: skip
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    chat.talk(session)
    output = capsys.readouterr()
    shown = [line for line in output.out.splitlines() if line and not line.startswith("Commands")]
    assert len(shown) == 2 and shown[0] == shown[1]
    assert (
        output.err.count("error: ") == 2 and "none.png" in output.err and "/tiles x: is not understood" in output.err
    )
    assert session.system == "Be brief." and session.settings.max_tiles == 2 and not session.turns
    assert (tmp_path / "rows.jsonl").read_text().count("\n") == 1


def test_ctrl_c_ends_the_answer_and_not_the_session(session, monkeypatch, capsys):
    lines = iter(["What?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))

    def interrupted(text):
        yield "piece"
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "ask", interrupted)
    chat.talk(session)
    assert "the question is not part of the conversation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--max-num", "0"], "--max-num: is 0"), (["--temperature", "-1"], "--temperature: is -1"), ([], "nowhere")],
)
def test_mistakes_are_named(flags, message):
    with pytest.raises(UserError, match=message):
        chat.open_session(chat.make_parser().parse_args(["nowhere", *flags]))
