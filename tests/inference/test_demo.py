"""The demo's page: its handlers give the engine's answers, and in a browser it uploads, asks, compares and clears."""

import os
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from internvl.inference.chat import ChatSettings, LocalTalker, WithoutAdapter
from internvl.inference.engine import Engine, Request
from internvl.model.adapter_reading import read_adapter
from internvl.model.adapter_switch import AdapterSwitch
from internvl.model.checkpoint import Checkpoint
from internvl.model.loading import load_config
from tests.conftest import free_port, make_image

gr = pytest.importorskip("gradio", reason='Gradio is not installed: pip install ".[demo]"')
CHROMIUM = ("/usr/bin/chromium", "/usr/bin/google-chrome")


@pytest.fixture
def picture(tmp_path):
    make_image(200, 90, 4).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


@pytest.fixture
def page(tiny_base, trained_adapter):
    """The page of an adapter beside its base, on one copy of the weights."""
    from internvl.inference.demo import Page

    base = Engine.load(tiny_base, precision="fp32", device="cpu", max_tiles=4)
    checkpoint = Checkpoint(trained_adapter)
    switch = AdapterSwitch(base.model, read_adapter(checkpoint, load_config(checkpoint)))
    adapted = Engine(base.model, base.tokenizer, max_tiles=4)
    return Page([LocalTalker(adapted), WithoutAdapter(base, switch)], ChatSettings(max_new_tokens=6))


def ask(page, text, files, talk=None):
    *_, last = page.respond({"text": text, "files": files}, talk, 4, 0.0, 6)
    return last[1], last[2:]


def test_both_columns_are_the_answers_of_models_loaded_alone(page, picture, tiny_base, trained_adapter):
    talk, columns = ask(page, "What is it?", [picture])
    for column, model in zip(columns, (trained_adapter, tiny_base), strict=True):
        engine = Engine.load(model, precision="fp32", device="cpu", max_tiles=4)
        expected = engine.answer([Request([engine.read(picture)], "What is it?")], max_new_tokens=6, do_sample=False)
        assert column[-1] == {"role": "assistant", "content": expected[0].strip()}
        assert column[:2] == [
            {"role": "user", "content": {"path": picture}}, {"role": "user", "content": "What is it?"}
        ]  # fmt: skip
    talk, columns = ask(page, "And now?", [], talk)
    assert all(len(column) == 5 for column in columns)
    assert columns[0][-1] != columns[1][-1] or columns[0][2] != columns[1][2]


def test_the_tiles_are_those_of_the_last_question(page, picture):
    from internvl.inference.demo import tiles_of

    talk, _ = ask(page, "What is it?", [picture])
    tiles = tiles_of(talk.sessions[0])
    assert [caption for _, caption in tiles] == [f"picture.png: {n} of 3" for n in (1, 2, 3)]
    assert tiles[0][0].size == (56, 56)
    talk, _ = ask(page, "And now?", [], talk)
    assert tiles_of(talk.sessions[0]) == []


def test_a_damaged_upload_is_refused_by_its_name_and_the_talk_goes_on(page, picture, tmp_path):
    talk, before = ask(page, "What is it?", [picture])
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    for files in ([str(tmp_path / "broken.jpg")], [picture, str(tmp_path / "broken.jpg")]):
        with pytest.raises(gr.Error) as error:
            ask(page, "And this?", files, talk)
        assert str(error.value.message).startswith("broken.jpg: cannot be read as an image")
    with pytest.raises(gr.Error):
        ask(page, " ", [picture], talk)
    _, after = ask(page, "And now?", [], talk)
    assert [column[:3] for column in after] == list(before)


def test_an_answer_that_is_stopped_is_no_part_of_the_talk(page, picture):
    talk, before = ask(page, "What is it?", [picture])
    answering = page.respond({"text": "And now?", "files": [picture]}, talk, 4, 0.0, 6)
    next(answering)
    answering.close()
    assert page.stop(talk) == (talk, *before)
    running = page.respond({"text": "And now?", "files": [picture]}, talk, 4, 0.0, 6)
    while len(talk.sessions[0].turns) == 2:  # until the first model has answered
        next(running)
    running.close()
    assert page.stop(talk) == (talk, *before)


@pytest.fixture
def served(tiny_base, trained_adapter, repository):
    """The address of a demo that runs as a user starts it."""
    port = free_port()
    command = [sys.executable, "tools/demo.py", trained_adapter, "--compare", tiny_base, "--port", port]
    command += ["--max-new-tokens", 6, "--max-num", 2]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*map(str, command)], cwd=repository, env=environment, stderr=subprocess.PIPE, text=True
    )
    lines = []
    threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True).start()
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        assert process.poll() is None, lines
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=5).close()
            break
        except OSError:
            time.sleep(0.5)
    yield address, lines
    process.terminate()
    process.wait(timeout=30)


@pytest.mark.slow
def test_it_survives_a_hundred_mixed_requests_of_eight_clients(served, picture, tmp_path):
    from gradio_client import Client, handle_file

    address, lines = served
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    client_of = threading.local()

    def request(number: int) -> str:
        if not hasattr(client_of, "client"):
            client_of.client = Client(address, verbose=False)
        file = picture if number % 4 else str(tmp_path / "broken.png")
        message = {"text": f"What is it, {number}?", "files": [handle_file(file)] if number % 3 else []}
        try:
            *_, first, second = client_of.client.predict(message, 2, 0.0, 3, api_name="/respond")
        except Exception as err:
            return f"refused: {err}"
        return f"{len(first)} {len(second)}"

    with ThreadPoolExecutor(8) as clients:
        results = list(clients.map(request, range(100)))
    broken = {number for number in range(100) if number % 4 == 0 and number % 3}
    assert {number for number, one in enumerate(results) if one.startswith("refused")} == broken, results
    assert all("cannot be read as an image" in results[number] for number in broken)
    assert not any("Traceback" in line for line in lines), lines


@pytest.mark.slow
def test_a_browser_uploads_asks_compares_and_clears(served, picture, tmp_path):
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    chromium = next((path for path in CHROMIUM if os.path.exists(path)), None)
    if chromium is None:
        pytest.skip("there is no Chromium")
    address, _ = served
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        window = browser.new_page(viewport={"width": 1280, "height": 900})
        noise, foreign = [], []
        window.on("console", lambda said: noise.append(said.text) if said.type == "error" else None)
        window.on(
            "request", lambda r: foreign.append(r.url) if not r.url.startswith((address, "data:", "blob:")) else None
        )
        window.goto(address)
        upload, text = "#question input[type=file]", "#question textarea"
        window.wait_for_selector(text)
        window.set_input_files(upload, picture)
        window.wait_for_selector("#question img")
        window.fill(text, "What is it?")
        window.keyboard.press("Enter")
        window.wait_for_function("document.querySelectorAll('#answers-2 .bot').length > 0", timeout=60_000)
        assert window.locator("#answers-1 .bot").count() > 0
        window.set_viewport_size({"width": 390, "height": 844})
        assert window.evaluate("document.documentElement.scrollWidth") <= 390
        window.get_by_role("button", name="Clear", exact=True).last.click()
        window.wait_for_function("document.querySelectorAll('#answers-1 .bot').length == 0", timeout=30_000)
        browser.close()
    assert noise == [] and foreign == []
