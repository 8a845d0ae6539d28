"""Evaluation through a server: the local engine's answers, tiles, resuming, and what is refused."""

import json
import stat
import sys
from pathlib import Path

import pytest

from internvl.commands.evaluate_caption import main as evaluate
from internvl.errors import UserError
from internvl.evaluation.answers import AnswerLog
from internvl.evaluation.datasets import CaptionSet
from internvl.evaluation.generation import generate_captions
from internvl.evaluation.questions import Question, check_media
from internvl.evaluation.serving import connect, start_vllm
from internvl.inference import vllm
from internvl.inference.engine import Engine
from internvl.model.checkpoint import Checkpoint
from internvl.model.internvl_chat.conversation import Turn
from tests.conftest import REPOSITORY, make_image
from tests.inference.fake_server import PUBLISHED_TEMPLATE, FakeServer, running

GREEDY = {"max_new_tokens": 6, "min_new_tokens": 3, "num_beams": 1, "do_sample": False}


def load(folder, max_tiles) -> Engine:
    return Engine.load(folder, precision="fp32", device="cpu", max_tiles=max_tiles)


@pytest.fixture
def questions(tmp_path) -> list[Question]:
    """A text, an image of several tiles, two images with history, and a video of three frames."""
    for number, size in enumerate([(560, 60), (60, 60), (60, 200)]):
        make_image(*size, number).save(tmp_path / f"{number}.png")
    (tmp_path / "video").mkdir()
    for number in range(3):
        make_image(90, 40, number).save(tmp_path / "video" / f"frame_{number}.png")
    images = [tmp_path / f"{number}.png" for number in range(3)]
    talk = (Turn("system", "Be brief."), Turn("human", "<image>\nA: <image>\nSame?"), Turn("gpt", "No."))
    return [
        Question(0, (Turn("human", "What is red?"),), "rows:1"),
        Question(1, (Turn("human", "<image>\nDescribe it."),), "rows:2", images=(images[0],)),
        Question(2, (*talk, Turn("human", "Why?")), "rows:3", images=(images[1], images[2])),
        Question(3, (Turn("human", "<video>\nWhat moves?"),), "rows:4", video=tmp_path / "video"),
    ]


def answers(engine, questions, folder, **settings) -> list[dict]:
    data = CaptionSet("test", questions, {})
    log = AnswerLog(folder, {})
    sizes = check_media(questions)
    found = generate_captions(
        engine, data, sizes, log, batch_size=2, num_frames=3, quiet=True, **{**GREEDY, **settings}
    )
    log.close()
    return found


@pytest.mark.parametrize("served_limit", [12, 6])
def test_answers_are_the_local_engine_s(tiny_base, questions, tmp_path, served_limit):
    # The limit of the evaluation is 6; where the server has another, each request brings its own.
    server = FakeServer({"m": load(tiny_base, served_limit)}, trusts_kwargs=True)
    with running(server) as url:
        got = answers(connect(Checkpoint(tiny_base), url, None, max_tiles=6), questions, tmp_path / "served")
    assert got == answers(load(tiny_base, 6), questions, tmp_path / "local")
    # The frames of the video have one tile each, whatever the limit.
    assert any("mm_processor_kwargs" in request for request in server.requests)


def test_without_tiles_images_are_padded_as_in_training(tiny_base, questions, tmp_path):
    engine = load(tiny_base, 1)
    engine.config.pad2square = True
    with running(FakeServer({"m": load(tiny_base, 1)})) as url:
        served = connect(Checkpoint(tiny_base), url, None, max_tiles=1)
        served.config.pad2square = True
        got = answers(served, questions, tmp_path / "served")
    assert got == answers(engine, questions, tmp_path / "local")


@pytest.mark.parametrize(
    ("server", "message"),
    [
        (
            {"max_tiles": 12},
            "it takes no other limit .*Start vLLM with --trust-request-mm-kwargs, pass --max-num",
        ),
        ({"template": PUBLISHED_TEMPLATE}, "read a prompt of .* run tools/check_serving.py"),
        ({"breaks_after": 1}, "status 500 .the engine has died"),
        ({"sees": False}, "status 400 .At most 0 image"),
    ],
)
def test_a_server_that_does_something_else_ends_the_evaluation(tiny_base, questions, tmp_path, server, message):
    settings = dict(server)
    fake = FakeServer({"m": load(tiny_base, settings.pop("max_tiles", 6))}, **settings)
    with running(fake) as url:
        engine = connect(Checkpoint(tiny_base), url, None, max_tiles=6)
        with pytest.raises(UserError, match=message):
            answers(engine, questions[:3], tmp_path)


def test_beams_are_refused(tiny_base, questions, tmp_path):
    with running(FakeServer({"m": load(tiny_base, 6)})) as url:
        engine = connect(Checkpoint(tiny_base), url, None, max_tiles=6)
        with pytest.raises(UserError, match="--num-beams: is 3, and a server searches with one"):
            answers(engine, questions, tmp_path, num_beams=3)


def test_an_evaluation_goes_on_after_its_server_broke(tiny_base, trained_adapter, tmp_path, capsys):
    server = FakeServer({"base": load(tiny_base, 6), "adapter": load(trained_adapter, 6)})
    flags = ["--checkpoint", str(trained_adapter), "--datasets", "habitat", "--limit", "6", "--batch-size", "2"]
    flags += ["--dynamic", "--max-num", "6", "--max-new-tokens", "9"]
    with running(server) as url:
        remote = [*flags, "--server", url, "--served-model", "adapter", "--out-dir", str(tmp_path / "served" / "out")]
        server.breaks_after = 3
        with pytest.raises(SystemExit) as end:
            evaluate(remote)
        assert end.value.code == 2 and "the engine has died" in capsys.readouterr().err
        server.breaks_after = None
        asked = len(server.requests)
        evaluate(remote)
        assert "Continuing: 2 of 6" in capsys.readouterr().out and len(server.requests) == asked + 4
    evaluate([*flags, "--precision", "fp32", "--out-dir", str(tmp_path / "local" / "out")])
    served, local = (json.loads((tmp_path / n / "out" / "predictions.json").read_text()) for n in ("served", "local"))
    assert served == local
    settings = json.loads((tmp_path / "served" / "out" / "scores.json").read_text())["settings"]
    assert (settings["engine"], settings["precision"]) == ("vllm", "server")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--engine", "vllm", "--num-beams", "3"], "--num-beams: is 3, and --engine vllm searches with one"),
        (["--server", "http://x", "--engine", "local"], "--server: does not go with --engine local"),
        (["--served-model", "x"], "--served-model: goes with --server URL"),
        (["--server", "http://x", "--vision-cache", "c"], "--vision-cache: has no effect with --server"),
        (["--server", "http://x", "--precision", "bf16"], "--precision: is bf16, and with --server the server"),
        (["--server", "http://127.0.0.1:9"], "no server answers there"),
    ],
)
def test_flags_that_do_not_go_together_are_named(tiny_base, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as end:
        evaluate(["--checkpoint", str(tiny_base), "--datasets", "habitat", "--limit", "1",
                  "--out-dir", str(tmp_path / "out"), *flags])  # fmt: skip
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_a_missing_vllm_is_named_with_the_two_ways_on(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(vllm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="vLLM is not installed here.*pip install vllm.*pass --server URL"):
        vllm.vllm_command()


def test_the_command_serves_an_adapter_beside_its_base(tiny_base, lora_only, monkeypatch):
    monkeypatch.setattr(vllm, "vllm_command", lambda: ["vllm"])
    settings = {"precision": "bf16", "max_tiles": 6, "max_model_len": 500, "num_images": 2, "num_devices": 1}
    command = " ".join(vllm.serve_command(Checkpoint(lora_only), 8000, **settings))
    assert f"vllm serve {tiny_base} --host 127.0.0.1 --port 8000 --enable-lora --max-lora-rank 8" in command
    assert '--hf-overrides {"max_dynamic_patch": 6}' in command
    assert f"--lora-modules evaluated={lora_only}" in command and "--dtype bfloat16 --max-model-len 500" in command


def test_an_adapter_that_vllm_would_not_serve_whole_is_refused(trained_adapter, monkeypatch):
    monkeypatch.setattr(vllm, "vllm_command", lambda: ["vllm"])
    settings = {"precision": "fp32", "max_tiles": 6, "max_model_len": 500, "num_images": 2, "num_devices": 1}
    with pytest.raises(UserError, match="modules trained in full.*tools/merge_lora.py"):
        vllm.serve_command(Checkpoint(trained_adapter), 8000, **settings)


@pytest.fixture
def lora_only(tiny_base, tmp_path):
    """An adapter with LoRA on the language model alone."""
    from internvl.model.adapter import choose_trainable, save_adapter
    from internvl.model.loading import load_model

    model, tokenizer = load_model(tiny_base)
    choose_trainable(model, freeze_llm=True, freeze_backbone=True, freeze_mlp=True, use_llm_lora=8)
    save_adapter(model, tmp_path / "lora", base=tiny_base, base_sha256="")
    tokenizer.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


PROGRAM = """#!{python}
import sys, threading
if "--broken" in sys.argv or {broken}:
    print("ValueError: the weights are for another machine")
    sys.exit(3)
from internvl.inference.engine import Engine
from tests.inference import fake_server
place = dict(zip(sys.argv, sys.argv[1:]))
engine = Engine.load(sys.argv[2], precision="fp32", device="cpu", max_tiles=6)
server = fake_server.FakeServer({{place["--served-model-name"]: engine}})
fake_server.PORT = int(place["--port"])
with fake_server.running(server):
    threading.Event().wait()
"""


@pytest.fixture
def vllm_program(tmp_path, monkeypatch):
    """A program ``vllm`` on the PATH that serves as vLLM does, or ends at once."""

    def make(broken: bool = False) -> Path:
        file = tmp_path / "bin" / "vllm"
        file.parent.mkdir(exist_ok=True)
        file.write_text(PROGRAM.format(python=sys.executable, repository=str(REPOSITORY), broken=broken))
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(vllm, "vllm_command", lambda: [str(file)])
        return file

    return make


def start(tiny_base, questions):
    return start_vllm(Checkpoint(tiny_base), questions, check_media(questions), max_tiles=6, num_frames=3,
                      max_new_tokens=6, precision="fp32")  # fmt: skip


def test_vllm_is_started_for_the_evaluation_and_ended_after_it(tiny_base, questions, vllm_program, tmp_path):
    vllm_program()
    with start(tiny_base, questions) as engine:
        got = answers(engine, questions[:3], tmp_path / "served")
        client = engine.client
    assert got == answers(load(tiny_base, 6), questions[:3], tmp_path / "local")
    with pytest.raises(UserError, match="no server answers there"):
        client.models()


def test_a_vllm_that_does_not_start_says_why(tiny_base, questions, vllm_program):
    vllm_program(broken=True)
    message = "vllm serve: ended with status 3 .ValueError: the weights are for another"
    with pytest.raises(UserError, match=message), start(tiny_base, questions):
        pass
