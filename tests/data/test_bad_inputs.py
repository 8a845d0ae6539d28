"""Every kind of bad row we could think of: its own message at its line, no traceback, and nothing trains."""

import gzip
import json
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from internvl.data.checking import check_dataset
from internvl.data.dataset import ConversationDataset
from internvl.data.meta import DatasetSpec
from internvl.data.tokenize import RenderSettings
from internvl.errors import UserError
from internvl.limits import MAX_LINE_BYTES
from internvl.model.internvl_chat.conversation import get_conv_template
from tests.conftest import make_image

QUESTION = {"from": "human", "value": "<image>\nWhat?"}
PLAIN = {"from": "human", "value": "Hello."}
ANSWER = {"from": "gpt", "value": "A cup."}
VIDEO = {"from": "human", "value": "<video>\nWhat?"}
GOOD = json.dumps({"conversations": [PLAIN, ANSWER]}).encode()


def row(*turns: dict, **fields) -> bytes:
    return json.dumps({**fields, "conversations": list(turns)}).encode()


def says(human: str, gpt: str = "A cup.", **fields) -> bytes:
    return row({"from": "human", "value": human}, {"from": "gpt", "value": gpt}, **fields)


def shown(name: str) -> bytes:
    return row(QUESTION, ANSWER, image=name)


def filmed(name: str, **fields) -> bytes:
    return row(VIDEO, ANSWER, video=name, **fields)


# (name, line, what the message says). The files are made by `media`.
BAD_ROWS = [
    ("single quotes", b"{'conversations': []}", r"is not valid JSON \(Expecting property name"),
    ("cut off", GOOD[:-9], r"is not valid JSON"),
    ("two objects on a line", GOOD + GOOD, r"is not valid JSON \(Extra data"),
    ("trailing comma", GOOD[:-1] + b",}", r"is not valid JSON"),
    ("comment", b"// rows follow", r"is not valid JSON"),
    ("NUL bytes", b"\0\0\0\0", r"is not valid JSON"),
    ("bare text", b"Hello", r"is not valid JSON"),
    ("Latin-1", says("caf\u00e9").replace(b"\\u00e9", b"\xe9"), r"is not UTF-8 text"),
    ("a lone surrogate", GOOD.replace(b"cup", b"\\ud83d"), r"turn 2 has a lone surrogate"),
    ("nested a thousand deep", b"[" * 100_000, r"is nested too deeply|is not valid JSON"),
    ("a number of 5,000 digits", b'{"id": ' + b"9" * 5000 + b"}", r"has an unreadable number"),
    ("duplicate key", GOOD[:-1] + b', "conversations": []}', r"has the key 'conversations' twice"),
    ("array", b" [1, 2]", r"holds list, not an object"),
    ("string", b'"Hello"', r"holds str, not an object"),
    ("null", b"null", r"holds NoneType, not an object"),
    ("number", b"3.5", r"holds float, not an object"),
    ("line of 17 MB", says("x" * (17 << 20)), r"the line has 17,\d+,\d+ bytes"),
    ("no conversations", b'{"id": 1}', r"conversations is None"),
    ("empty conversations", row(), r"conversations is \[\]"),
    ("conversations are text", b'{"conversations": "Hi"}', r"conversations is 'Hi'"),
    ("messages instead", b'{"messages": []}', r"has the keys \['messages'\], the form of --from messages"),
    ("turn is text", b'{"conversations": ["Hi", "Ho"]}', r"turn 1 is from None"),
    ("unknown role", row({"from": "user", "value": "x"}, ANSWER), r"turn 1 is from 'user'"),
    ("role missing", row({"value": "x"}, ANSWER), r"turn 1 is from None"),
    ("role is a list", row({"from": ["human"], "value": "x"}, ANSWER), r"turn 1 is from \['human'\]"),
    ("value missing", row({"from": "human", "text": "x"}, ANSWER), r"turn 1 has the value None"),
    ("value is a number", row({"from": "human", "value": 5}, ANSWER), r"turn 1 has the value 5"),
    ("value is a list", row({"from": "human", "value": ["x"]}, ANSWER), r"turn 1 has the value \['x'\]"),
    ("gpt first", row(ANSWER, PLAIN, ANSWER), r"turn 1, the first, is an answer"),
    ("human twice", row(PLAIN, PLAIN, ANSWER), r"turn 2 is from 'human' where 'gpt' is due"),
    ("gpt twice", row(PLAIN, ANSWER, ANSWER), r"turn 3 is from 'gpt' where 'human' is due"),
    ("system late", row(PLAIN, {"from": "system", "value": "x"}, ANSWER), r"turn 2 is from 'system'"),
    ("system alone", row({"from": "system", "value": "x"}), r"ends with a 'system' turn"),
    ("no answer", row(PLAIN), r"ends with a 'human' turn"),
    ("question last", row(PLAIN, ANSWER, PLAIN), r"ends with a 'human' turn"),
    ("empty answer", says("Hi.", ""), r"turn 2 is an empty answer"),
    ("blank answer", says("Hi.", " \n\t\u3000"), r"turn 2 is an empty answer"),
    ("literal <IMG_CONTEXT>", says("<IMG_CONTEXT> what?"), r"turn 1 contains the reserved token <IMG_CONTEXT>"),
    ("literal <img>", says("the <img> tag"), r"turn 1 contains the reserved token <img>"),
    ("literal <|im_end|>", says("Hi.", "Bye.<|im_end|>"), r"turn 2 contains the reserved token <\|im_end\|>"),
    ("literal </s>", says("Hi.", "Bye.</s>"), r"turn 2 contains the reserved token </s>"),
    ("<image> in an answer", says("Hi.", "See <image>."), r"turn 2, from 'gpt', contains <image>"),
    ("<image> in the system turn",
     row({"from": "system", "value": "<image>"}, PLAIN, ANSWER), r"turn 1, from 'system', contains <image>"),
    ("mark without image", says("<image>\nWhat?"), r"has 1 <image> markers .* lists 0 images"),
    ("two marks, one image", says("<image><image>", image="good.png"), r"has 2 <image> markers .* lists 1 image"),
    ("one mark, two images", says("<image>", image=["good.png"] * 2), r"has 1 <image> markers .* lists 2 image"),
    ("no mark, two images", says("What?", image=["good.png"] * 2), r"has 0 <image> markers .* lists 2 image"),
    ("video mark without video", row(VIDEO, ANSWER), r"has 1 <video> markers .* lists 0 videos"),
    ("two video marks", says("<video><video>", video="good.mp4"), r"has 2 <video> markers .* lists 1 videos"),
    ("image is a number", row(QUESTION, ANSWER, image=3), r"image is 3\. Give a path"),
    ("image list holds null", row(QUESTION, ANSWER, image=[None]), r"image is \[None\]"),
    ("image is an object", row(QUESTION, ANSWER, image={"bytes": "aGk="}), r"image is \{'bytes'"),
    ("video is a list", row(VIDEO, ANSWER, video=["a.mp4", "b.mp4"]), r"video is \['a\.mp4', 'b\.mp4'\]"),
    ("images and a video", says("<video>", video="good.mp4", image="good.png"), r"has images .* and a video"),
    ("width is text", row(QUESTION, ANSWER, image="good.png", width="60", height=60), r"width '60' and height 60"),
    ("height is negative", row(QUESTION, ANSWER, image="good.png", width=60, height=-1), r"width 60 and height -1"),
    ("too few sizes", row(QUESTION, ANSWER, image=["good.png"], width_list=[], height_list=[]), r"width_list \[\]"),
    ("missing image", shown("none.png"), r"none\.png: there is no such image"),
    ("image is a folder", shown("folder"), r"folder: cannot be read as an image"),
    ("empty image", shown("empty.png"), r"empty\.png: cannot be read as an image"),
    ("image is text", shown("text.jpg"), r"text\.jpg: cannot be read as an image"),
    ("image is a web page", shown("page.jpg"), r"page\.jpg: cannot be read as an image"),
    ("cut-off image", shown("cut.png"), r"cut\.png: cannot be read as an image"),
    ("cut-off photo", shown("cut.jpg"), r"cut\.jpg: cannot be read as an image"),
    ("decompression bomb", shown("bomb.png"), r"bomb\.png: (has more than|cannot be read as an image).*pixels"),
    ("strip of 1 px", shown("strip.png"), r"strip\.png: is 4000 × 1 px"),
    ("address", shown("https://example.com/a.png"), r"is an address"),
    ("base64", shown("data:image/png;base64,iVBORw0KGgo="), r"holds the image itself\. Write it to a file"),
    ("base64 without a head", shown("iVBORw0KGgo" * 500), r"more than 4,096 characters\. Give a path"),
    ("outside the root", shown("../outside.png"), r"leads out of the data set's root"),
    ("absolute path", shown("/etc/hostname"), r"leads out of the data set's root"),
    ("NUL in a path", shown("a\0.png"), r"has a NUL character"),
    ("missing video", filmed("none.mp4"), r"none\.mp4: there is no such video"),
    ("empty video", filmed("empty.mp4"), r"empty\.mp4: cannot be read as a video"),
    ("video is text", filmed("text.mp4"), r"text\.mp4: cannot be read as a video"),
    ("image as video", filmed("folder"), r"folder: has no frames"),
    ("sound only", filmed("sound.wav"), r"sound\.wav: cannot be read as a video \(it has no video stream"),
    ("clip behind the end", filmed("frames", clip=[100, 200]), r"clip starts at 100 s"),
    ("clip backwards", filmed("frames", clip=[2, 1]), r"clip is \[2, 1\]"),
    ("box beyond 1000", says("Where?", "<ref>cup</ref><box>[[0, 0, 1200, 10]]</box>"), r"turn 2: .*1200"),
    ("box of three", says("Where?", "<ref>cup</ref><box>[[0, 0, 12]]</box>"), r"turn 2: "),
    ("box not closed", says("Where?", "<ref>cup</ref><box>[[0, 0, 1, 1]]"), r"turn 2: "),
    ("too long to keep its images", says("word " * 3000 + "<image>", image="good.png"), r"would cut through its"),
    ("too long to keep an answer", says("word " * 3000), r"would cut every answer off"),
]  # fmt: skip


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """A root with one good image, frames, and every kind of broken file."""
    root = tmp_path_factory.mktemp("parent") / "root"
    (root / "folder").mkdir(parents=True)
    (root / "frames").mkdir()
    make_image(60, 60, 1).save(root / "good.png")
    make_image(60, 60, 1).save(root.parent / "outside.png")
    for number in range(4):
        make_image(60, 60, number).save(root / "frames" / f"{number}.png")
    for name in ("empty.png", "empty.mp4"):
        (root / name).touch()
    (root / "text.jpg").write_text("hello")
    (root / "text.mp4").write_text("hello " * 100)
    (root / "page.jpg").write_text("<!DOCTYPE html><html><body>404</body></html>")
    make_image(60, 60, 2).save(root / "whole.jpg")
    for name, whole in (("cut.png", "good.png"), ("cut.jpg", "whole.jpg")):
        content = (root / whole).read_bytes()
        (root / name).write_bytes(content[: len(content) // 2])
    Image.new("L", (4000, 1)).save(root / "strip.png")
    (root / "bomb.png").write_bytes(bomb(60_000, 60_000))
    (root / "sound.wav").write_bytes(
        b"RIFF" + struct.pack("<I", 36 + 800) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
        + b"data" + struct.pack("<I", 800) + bytes(800)
    )  # fmt: skip
    return root


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says it has width × height pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + content + chunk(b"IEND", b"")


def open_rows(root: Path, file: Path, tokenizer) -> ConversationDataset:
    settings = RenderSettings(get_conv_template("internlm2-chat"), 56, 4, max_seq_length=512)
    return ConversationDataset([DatasetSpec("rows", root, (file,))], tokenizer, settings)


@pytest.mark.parametrize(("line", "message"), [case[1:] for case in BAD_ROWS], ids=[case[0] for case in BAD_ROWS])
def test_each_kind_of_bad_row_is_named_at_its_line_and_trains_nothing(line, message, media, tiny_model, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(GOOD + b"\n\n" + line + b"\n" + GOOD + b"\n")
    # A cut-off image shows when it is decoded only.
    dataset = open_rows(media, file, tiny_model.tokenizer)
    check = check_dataset(dataset, deep=True, processes=1)
    assert [problem.where for problem in check.errors] == [f"{file}:3"]
    with pytest.raises(UserError, match=rf"^{file}:3: .*{message}(.|\n)*\n1 of 3 row cannot be trained on") as error:
        check.raise_errors("")
    assert len(str(error.value)) < 1500
    with pytest.raises(UserError, match=rf"^{file}:3: "):
        dataset[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[\n" + GOOD + b"\n]\n", r"rows\.jsonl:1: starts with '\[', a JSON array .*convert_annotations\.py"),
        (b"\xef\xbb\xbf[" + GOOD + b"]", r"rows\.jsonl:1: starts with '\['"),
        (GOOD.decode().encode("utf-16"), r"rows\.jsonl:1: is UTF-16 text"),
        (gzip.compress(gzip.compress(GOOD)), r"rows\.jsonl:1: is gzip-compressed\. Unpack it: gunzip < "),
        (b"PAR1" + bytes(40), r"rows\.jsonl:1: is a Parquet table\. Write its rows as JSONL"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"rows\.jsonl:1: is a Git LFS pointer.*git lfs pull"),
        (b"", r"rows\.jsonl: holds no rows"),
        (b"\n \n\r\n", r"rows\.jsonl: holds no rows"),
    ],
    ids=["array", "array behind a mark", "UTF-16", "gzip twice", "Parquet", "Git LFS", "empty", "blank lines"],
)
def test_files_of_another_form_are_named(content, message, media, tiny_model, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_rows(media, file, tiny_model.tokenizer)


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbf" + GOOD + b"\n", GOOD + b"\r\n", GOOD, says("你好 😀 caf\u00e9"), says("<ref>cup</ref>, 1 < 2")],
    ids=["UTF-8 mark", "CRLF", "no newline at the end", "any language", "a reference"],
)
def test_unusual_but_right_files_are_accepted(content, media, tiny_model, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    dataset = open_rows(media, file, tiny_model.tokenizer)
    check = check_dataset(dataset)
    assert not check.errors and len(dataset[0].input_ids) == check.lengths(dataset.index)[0]


def test_there_are_at_least_sixty_kinds():
    assert len({name for name, _, _ in BAD_ROWS}) >= 60 and MAX_LINE_BYTES < 17 << 20


def test_an_image_that_vanishes_after_the_check_is_named(media, tiny_model, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(media, root)
    file = tmp_path / "rows.jsonl"
    file.write_bytes(shown("good.png"))
    dataset = open_rows(root, file, tiny_model.tokenizer)
    assert not check_dataset(dataset).errors
    (root / "good.png").unlink()
    with pytest.raises(UserError, match=r"rows\.jsonl:1: .*no such image"):
        dataset[0]
