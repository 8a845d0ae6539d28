"""What is sent to a server: messages, images, and what its refusals become."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from internvl.errors import UserError
from internvl.inference.client import ServerClient, chat_messages, data_url
from internvl.model.internvl_chat.conversation import Turn
from tests.conftest import make_image
from tests.inference.fake_server import FakeServer, running


def pixels_of(url: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2]))) as image:
        return np.asarray(image)


def test_plain_files_go_as_they_are(tmp_path):
    make_image(60, 40, 1).save(tmp_path / "plain.jpg")
    make_image(60, 40, 1).save(tmp_path / "plain.png")
    for name, kind in (("plain.jpg", "image/jpeg"), ("plain.png", "image/png")):
        url = data_url(tmp_path / name, "here")
        head, _, content = url.partition(";base64,")
        assert head == f"data:{kind}" and base64.b64decode(content) == (tmp_path / name).read_bytes()


def test_what_servers_may_read_otherwise_goes_as_upright_rgb(tmp_path):
    image = make_image(60, 40, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.convert("L").save(tmp_path / "grey.png")
    image.convert("P").save(tmp_path / "palette.png")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    image.save(tmp_path / "other.bmp")
    for name, size in [
        ("turned.jpg", (60, 40, 3)),
        *((n, (40, 60, 3)) for n in ("grey.png", "palette.png", "alpha.png")),
    ]:
        url = data_url(tmp_path / name, "here")
        assert url.startswith("data:image/png;") and pixels_of(url).shape == size
    assert (pixels_of(data_url(tmp_path / "other.bmp", "here")) == np.asarray(image)).all()
    assert (pixels_of(data_url(image, "here")) == np.asarray(image)).all()


def test_a_damaged_file_is_named_with_its_row(tmp_path):
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UserError, match="rows.jsonl:3: .*cut.jpg: cannot be read"):
        data_url(tmp_path / "cut.jpg", "rows.jsonl:3")


def test_turns_become_messages_with_a_part_for_each_image():
    turns = [
        Turn("system", "Be brief. "),
        Turn("human", "Left: <image>\nRight: <image>\n Which?"),
        Turn("gpt", "The left."),
        Turn("human", "And <image>"),
    ]
    urls = ["a", "b", "c"]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    assert chat_messages(turns, urls) == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Left: "}, parts[0],
                {"type": "text", "text": "Right: "}, parts[1], {"type": "text", "text": " Which?"},
            ],
        },
        {"role": "assistant", "content": "The left."},
        {"role": "user", "content": [{"type": "text", "text": "And "}, parts[2]]},
    ]  # fmt: skip


def test_an_image_amid_a_line_is_refused():
    with pytest.raises(UserError, match="writes a line break behind each image, and here ' or' follows"):
        chat_messages([Turn("human", "This <image> or")], ["a"])


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host/", "http://"])
def test_what_is_not_an_address_is_named(url):
    with pytest.raises(UserError, match="is not the address of a server"):
        ServerClient(url)


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(UserError, match="http://127.0.0.1:9: no server answers there .*Start it"):
        ServerClient("http://127.0.0.1:9/v1/").models()


def test_a_model_is_chosen_by_name_or_because_it_is_the_only_one():
    with running(FakeServer({"one": None})) as url:
        assert ServerClient(url).choose_model(None, "--model") == "one"
        with pytest.raises(UserError, match=f"--model: is 'other', and {url} serves one. Give one"):
            ServerClient(url).choose_model("other", "--model")
    with running(FakeServer({"one": None, "two": None})) as url:
        assert ServerClient(f"{url}/v1").choose_model("two", "--model") == "two"
        with pytest.raises(UserError, match="serves one, two. Name one with --model"):
            ServerClient(url).choose_model(None, "--model")
