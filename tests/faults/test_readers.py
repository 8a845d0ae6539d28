"""Every reader of files that users bring, on damaged ones: a result or one message, in bounded time, writing nowhere.

python -m pytest tests/faults                            # some hundred inputs, the same every time
INTERNVL_FAULTS=10000 python -m pytest tests/faults      # as many, others every time
"""

import json
import os
from pathlib import Path

import pytest
from hypothesis import strategies as st

from internvl.commands import check_data, convert_annotations
from internvl.data.annotation import AnnotationFile
from internvl.data.media import media_path, read_image, read_image_size, read_info, read_video
from internvl.data.meta import read_meta
from internvl.errors import UserError
from tests.conftest import make_image
from tests.faults.corpus import (
    ANSWER,
    COCO,
    META,
    NAMES,
    ROWS,
    damaged_file,
    damaged_json,
    damaged_lines,
    one_of_files,
    whole_images,
    write_rows,
)
from tests.faults.harness import fuzz


def test_meta_files(sandbox):
    write_rows(sandbox.inputs)
    (sandbox.inputs / "meta.json").write_text(json.dumps(META))
    assert len(read_meta("meta.json")) == 2

    def drive(content: bytes):
        (sandbox.inputs / "meta.json").write_bytes(content)
        return lambda: read_meta("meta.json")

    fuzz("meta file", damaged_json(META), drive, sandbox.out, weight=0.08)


def test_annotation_files(sandbox):
    def read_all():
        file = AnnotationFile("rows.jsonl")
        for number in range(len(file)):
            file.row(number)

    def drive(content: bytes):
        (sandbox.inputs / "rows.jsonl").write_bytes(content)
        return read_all

    fuzz("annotation file", damaged_lines(*ROWS), drive, sandbox.out, weight=0.12)


def test_checking_training_data(sandbox, tiny_base):
    arguments = ["meta.json", "--model", str(tiny_base), "--processes", "1", "--deep"]
    outputs = ["--out", str(sandbox.out / "report.json"), "--preview", str(sandbox.out / "preview.html")]

    def drive(case: tuple[str, bytes]):
        write_rows(sandbox.inputs)
        (sandbox.inputs / "meta.json").write_text(json.dumps(META))
        name, content = case
        (sandbox.inputs / name).write_bytes(content)
        return lambda: check_data.main([*arguments, *outputs])

    files = {"rows.jsonl": damaged_lines(*ROWS), "meta.json": damaged_json(META)}
    fuzz("tools/check_data.py", one_of_files(files), drive, sandbox.out, weight=0.04)


def test_images(sandbox):
    file = sandbox.inputs / "damaged.jpg"

    def read_both():
        size = read_image_size(file, "rows.jsonl:1")
        image = read_image(file, "rows.jsonl:1")
        assert image.mode == "RGB" and image.size == size

    def drive(content: bytes):
        file.write_bytes(content)
        return read_both

    images = whole_images(make_image(60, 40, 3))
    fuzz("image", st.one_of(damaged_file(*images), st.sampled_from(images)), drive, sandbox.out, weight=0.16)


def test_videos(sandbox, film_bytes):
    file = sandbox.inputs / "damaged.mp4"

    def read_all():
        read_info(file, "rows.jsonl:1")
        read_video(file, lambda info: [0, info.num_frames - 1], "rows.jsonl:1")

    def drive(content: bytes):
        file.write_bytes(content)
        return read_all

    fuzz(
        "video",
        damaged_file(film_bytes, film_bytes, *whole_images(make_image(60, 40, 3))[8:10]),
        drive,
        sandbox.out,
        weight=0.08,
    )


def test_names_of_images_and_videos(sandbox):
    """What a name leads to lies below the root, or is refused."""
    root = sandbox.inputs

    def drive(case: tuple[str, str, bool]):
        folder, name, is_video = case

        def follow():
            path = media_path(root, folder + name, "rows.jsonl:1")
            assert Path(os.path.realpath(path)).is_relative_to(root.resolve())
            if is_video:
                read_info(path, "rows.jsonl:1")
            else:
                read_image(path, "rows.jsonl:1")

        return follow

    folders = st.sampled_from(["", "images/", "film/", "./", "images/../", "linked/", "../inputs/", "film/../../"])
    names = st.one_of(st.sampled_from(NAMES), st.text(max_size=20))
    fuzz("name of an image", st.tuples(folders, names, st.booleans()), drive, sandbox.out, weight=0.12)


MESSAGES = {
    "messages": [{"role": "user", "content": "<image>Hi."}, {"role": "assistant", "content": "Ho."}],
    "images": ["good.png"],
}
PARTS = [{"type": "image_url", "image_url": {"url": "good.png"}}, {"type": "text", "text": "Hi."}]
IN_PARTS = {"messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": "Ho."}]}
SHAREGPT = {"conversations": [{"from": "human", "value": "Hi."}, ANSWER], "system": "Be brief.", "images": []}
TABLE = b'image,caption\ngood.png,"a cup, full"\nfilm/1.png,a film\n'


def test_converting_annotations(sandbox):
    formats = {
        "llava": st.one_of(damaged_lines(*ROWS), damaged_json(ROWS)),
        "messages": st.one_of(damaged_lines(MESSAGES, IN_PARTS), damaged_json([MESSAGES, IN_PARTS])),
        "sharegpt": st.one_of(damaged_lines(SHAREGPT), damaged_json([SHAREGPT])),
        "coco": damaged_json(COCO),
        "csv": damaged_file(TABLE),
    }
    places = [str(sandbox.inputs / "input"), str(sandbox.out / "rows.jsonl"), "--meta", str(sandbox.out / "meta.json")]

    def drive(case: tuple[tuple[str, bytes], bool]):
        (source, content), skips = case
        (sandbox.inputs / "input").write_bytes(content)
        flags = ["--from", source, "--overwrite", *["--skip-bad"] * skips]
        return lambda: convert_annotations.main([*places, *flags])

    fuzz(
        "tools/convert_annotations.py",
        st.tuples(one_of_files(formats), st.booleans()),
        drive,
        sandbox.out,
        weight=0.08,
    )


def test_converting_a_folder_of_images(sandbox):
    folder = sandbox.inputs / "captioned"
    folder.mkdir()
    make_image(60, 40, 1).save(folder / "a.png")
    lines = damaged_lines({"file_name": "a.png", "text": "a cup"}, {"file_name": "a.png", "caption": "a cup"})
    files = {
        "metadata.jsonl": lines,
        "metadata.csv": damaged_file(b"file_name,text\na.png,a cup\n"),
        "a.txt": damaged_file(b"a cup"),
    }

    def drive(case: tuple[str, bytes]):
        for name in files:
            (folder / name).unlink(missing_ok=True)
        (folder / case[0]).write_bytes(case[1])
        places = [str(folder), str(sandbox.out / "rows.jsonl")]
        return lambda: convert_annotations.main([*places, "--from", "imagefolder", "--overwrite"])

    fuzz("folder of images", one_of_files(files), drive, sandbox.out, weight=0.02)


def test_the_harness_finds_faults(sandbox):
    """A reader that lets an error through, writes elsewhere or never ends is caught."""
    from tests.faults import harness

    def writes_elsewhere():
        (sandbox.inputs / "pwned").touch()

    for faulty in (lambda: json.loads("{"), writes_elsewhere, lambda: 1 / 0):
        with pytest.raises((ValueError, ZeroDivisionError, AssertionError)):
            harness.judge(faulty, sandbox.out)

    def says_little():
        raise UserError("wrong")

    with pytest.raises(AssertionError, match="form"):
        harness.judge(says_little, sandbox.out)

    def never_ends():
        while True:
            pass

    with pytest.raises(harness.HangError), harness.time_limit(1):
        never_ends()
