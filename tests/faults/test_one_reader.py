"""One reader for each kind of thing: every command gives the same odd file the same verdict."""

import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from internvl.commands import convert_annotations
from internvl.data.checking import check_dataset
from internvl.data.conversion import Options, read_rows
from internvl.data.meta import read_meta
from internvl.data.problems import RowError
from internvl.errors import UserError
from internvl.evaluation.questions import Question, check_media, read_request
from internvl.inference.engine import Engine
from internvl.json_files import read_json
from internvl.model.internvl_chat.conversation import Turn
from internvl.model.internvl_chat.image_processing_internvl_chat import InternVLChatImageProcessor, load_image
from tests.conftest import make_image, pixels
from tests.data.opening import open_rows

CASES = Path(__file__).parents[1] / "cases"
TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A."}]


def modes() -> dict[str, Image.Image]:
    """Images of every mode that Pillow saves, and two that no light is."""
    grey = np.arange(48 * 64, dtype=np.float32).reshape(48, 64)
    names = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
    made = {mode: make_image(64, 48, 3).convert(mode) for mode in names}
    made |= {
        "I;16": Image.fromarray(grey.astype(np.uint16)),
        "I": Image.fromarray(grey.astype(np.int32) * 9),
        "F": Image.fromarray(grey / 3072),
        "F negative": Image.fromarray(grey - 5),
        "F infinite": Image.fromarray(np.full((48, 64), np.inf, np.float32)),
    }
    return made


@pytest.mark.parametrize("mode", modes())
def test_training_check_evaluation_chat_and_processor_see_the_same_image(tiny_model, tmp_path, mode):
    file = tmp_path / {"LA": "odd.png", "YCbCr": "odd.jpg"}.get(mode, "odd.tiff")
    modes()[mode].save(file)
    engine = Engine(tiny_model.model, tiny_model.tokenizer, max_tiles=1)
    question = Question(1, (Turn("human", "<image>\nWhat?"),), "rows.jsonl:1", images=(file,))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": file.name, "conversations": TURNS}) + "\n")
    data = open_rows(tmp_path, tiny_model.tokenizer, dynamic_image_size=False)
    processor = InternVLChatImageProcessor(image_size=56, max_dynamic_patch=1)
    is_bad = bool(check_dataset(data, deep=True).errors)
    readers = {
        "training": lambda: pixels(data[0]).numpy(),
        "evaluation": lambda: read_request(engine, question, 8).images[0].tiles.numpy(),
        "chat": lambda: load_image(file, input_size=56, max_num=1).numpy(),
        "processor": lambda: processor(file)["pixel_values"].numpy(),
    }
    assert is_bad == mode.startswith("F ")
    if is_bad:
        for reader in readers.values():
            with pytest.raises((UserError, ValueError), match=r"cannot be read as an image \(its greys"):
                reader()
        return
    assert np.array_equal(readers["training"](), readers["evaluation"]())
    assert np.array_equal(readers["chat"](), readers["processor"]())


@pytest.mark.parametrize("name", ["02/cut_at_3.mp4", "02/joined.ts", "15/screen.mp4", "15/screen.webm"])
def test_training_check_and_evaluation_see_the_same_video(tiny_model, tmp_path, name):
    file = tmp_path / Path(name).name
    shutil.copyfile(CASES / name, file)
    turns = [{"from": "human", "value": "<video>\nWhat?"}, TURNS[1]]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"video": file.name, "conversations": turns}) + "\n")
    frames = {"min_num_frame": 8, "max_num_frame": 8, "sampling_method": "middle", "max_seq_length": 4000}
    data = open_rows(tmp_path, tiny_model.tokenizer, **frames)
    for deep in (False, True):
        assert not check_dataset(data, deep=deep).errors
    engine = Engine(tiny_model.model, tiny_model.tokenizer, max_tiles=1)
    question = Question(1, (Turn("human", "<video>\nWhat?"),), "rows.jsonl:1", video=file)
    check_media([question])
    seen = [part.tiles.numpy() for part in read_request(engine, question, 8).images]
    assert np.array_equal(pixels(data[0]).numpy(), np.concatenate(seen))


JSON_FILES = {
    "meta.json": lambda file: read_meta(file),
    "captions_mine.json": lambda file: list(read_rows("coco", file, Options())),
    "llava.json": lambda file: list(read_rows("llava", file, Options())),
    "predictions.json": lambda file: read_json(file),
    "gt.json": lambda file: read_json(file),
}


@pytest.mark.parametrize("name", JSON_FILES)
def test_every_json_file_may_start_with_a_byte_order_mark(tmp_path, name, monkeypatch):
    content = (CASES / "12" / name).read_bytes().removeprefix(b"\xef\xbb\xbf")
    if name == "meta.json":
        shutil.copyfile(CASES / "12" / "rows.jsonl", tmp_path / "rows.jsonl")
        content = json.dumps({"mine": {"root": str(tmp_path), "annotation": str(tmp_path / "rows.jsonl")}}).encode()
    (tmp_path / name).write_bytes(content)
    plain = JSON_FILES[name](tmp_path / name)
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)
    assert JSON_FILES[name](tmp_path / name) == plain
    assert not any(isinstance(row, tuple) and isinstance(row[1], RowError) for row in plain if isinstance(plain, list))


@pytest.mark.parametrize("name", JSON_FILES)
def test_every_reader_of_json_says_how_to_unpack_a_compressed_file(tmp_path, name):
    content = (CASES / "12" / name).read_bytes()
    file = tmp_path / "my data" / name
    file.parent.mkdir()
    file.write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match="is gzip-compressed. Unpack it: ") as error:
        JSON_FILES[name](file)
    command = re.search(r"gunzip < .*UNPACKED", str(error.value))[0]
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert (tmp_path / "UNPACKED").read_bytes() == content


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\"), min_size=1, max_size=40))
def test_every_reader_finds_an_image_under_any_name_that_the_disk_takes(tmp_path_factory, name):
    if name in (".", "..") or len(name.encode()) > 200 or "://" in name:
        return
    from internvl.data.media import media_path, read_image_size

    folder = tmp_path_factory.mktemp("names")
    make_image(20, 10, 1).save(folder / "image.png")
    (folder / "image.png").rename(folder / name)
    path = media_path(folder, name, "rows.jsonl:1")
    assert read_image_size(path, "rows.jsonl:1") == (20, 10)
    assert load_image(path, input_size=56, max_num=1).shape == (1, 3, 56, 56)
    question = Question(1, (Turn("human", "<image>"),), "rows.jsonl:1", images=(path,))
    assert check_media([question]) == {path: (20, 10)}


def test_conversion_reads_what_training_then_reads(tmp_path):
    rows = json.dumps([{"id": 1, "image": "ä b%20c.png", "conversations": TURNS}])
    (tmp_path / "in.json").write_bytes(b"\xef\xbb\xbf" + rows.encode())
    convert_annotations.main([str(tmp_path / "in.json"), str(tmp_path / "out.jsonl"), "--from", "llava"])
    assert json.loads((tmp_path / "out.jsonl").read_text())["image"] == "ä b%20c.png"
