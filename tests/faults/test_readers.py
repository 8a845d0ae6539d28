"""Every reader of files that users bring, on damaged ones: a result or one message, in bounded time, writing nowhere.

python -m pytest tests/faults                            # some hundred inputs, the same every time
INTERNVL_FAULTS=10000 python -m pytest tests/faults      # as many, others every time
"""

import json
import os
import pickle
from pathlib import Path

import check_data
import convert_annotations
import convert_to_hf
import merge_lora
import numpy as np
import prepare_pretrained
import pytest
import score_grounding
import torch
from hypothesis import strategies as st

from internvl.data.annotation import AnnotationFile
from internvl.data.media import media_path, read_info, read_picture, read_picture_size, read_video
from internvl.data.meta import read_meta
from internvl.errors import UserError
from internvl.evaluation import compare, datasets, score
from internvl.evaluation.datasets import read_caption_set, read_custom_set, read_train_sets
from internvl.evaluation.questions import check_media
from internvl.evaluation.scorers import Scored
from internvl.model.checkpoint import Checkpoint
from internvl.model.loading import load_checkpoint_tokenizer, load_config, load_model
from tests.conftest import picture
from tests.faults.corpus import (
    NAMES,
    damaged_file,
    damaged_json,
    damaged_lines,
    damaged_safetensors,
    one_of_files,
    whole_pictures,
)
from tests.faults.harness import fuzz

ANSWER = {"from": "gpt", "value": "A cup."}
ROWS = [
    {"id": 1, "conversations": [{"from": "human", "value": "Hello."}, ANSWER]},
    {"id": 2, "image": "good.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, ANSWER]},
    {
        "id": 3,
        "image": ["good.png", "film/1.png"],
        "width_list": [60, 60],
        "height_list": [40, 60],
        "conversations": [{"from": "human", "value": "<image> or <image>?"}, ANSWER],
    },
    {
        "id": 4,
        "video": "film",
        "clip": [0, 3],
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "<video>\nWhat?"},
            {"from": "gpt", "value": "<ref>cup</ref><box>[[1, 2, 30, 40]]</box>"},
        ],
    },
    {"id": 5, "video": "film.mp4", "conversations": [{"from": "human", "value": "<video>"}, ANSWER]},
]
ENTRY = {"root": ".", "annotation": ["rows.jsonl"], "data_augment": False, "repeat_time": 1.5, "length": 5}
META = {"set": ENTRY, "other": {**ENTRY, "annotation": "rows.jsonl", "max_dynamic_patch": 3}}
COCO = {
    "images": [{"id": 1, "file_name": "good.png"}, {"id": 2, "file_name": "film/1.png"}],
    "annotations": [{"id": 1, "image_id": 1, "caption": "a cup"}, {"id": 2, "image_id": 2, "caption": "a film"}],
}


def write_rows(folder: Path) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")


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


def test_pictures(sandbox):
    file = sandbox.inputs / "damaged.jpg"

    def read_both():
        size = read_picture_size(file, "rows.jsonl:1")
        image = read_picture(file, "rows.jsonl:1")
        assert image.mode == "RGB" and image.size == size

    def drive(content: bytes):
        file.write_bytes(content)
        return read_both

    pictures = whole_pictures(picture(60, 40, 3))
    fuzz("picture", st.one_of(damaged_file(*pictures), st.sampled_from(pictures)), drive, sandbox.out, weight=0.16)


def test_videos(sandbox, film_bytes):
    file = sandbox.inputs / "damaged.mp4"

    def read_all():
        info = read_info(file, "rows.jsonl:1")
        read_video(file, [0, info.num_frames - 1], "rows.jsonl:1")

    def drive(content: bytes):
        file.write_bytes(content)
        return read_all

    fuzz(
        "video",
        damaged_file(film_bytes, film_bytes, *whole_pictures(picture(60, 40, 3))[8:10]),
        drive,
        sandbox.out,
        weight=0.08,
    )


def test_names_of_pictures_and_videos(sandbox):
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
                read_picture(path, "rows.jsonl:1")

        return follow

    folders = st.sampled_from(["", "pictures/", "film/", "./", "pictures/../", "linked/", "../inputs/", "film/../../"])
    names = st.one_of(st.sampled_from(NAMES), st.text(max_size=20))
    fuzz("name of a picture", st.tuples(folders, names, st.booleans()), drive, sandbox.out, weight=0.12)


def test_config_files(sandbox, tiny_base, damage_one, read_file):
    def drive(content: bytes):
        folder = damage_one(tiny_base, "config.json", content)
        return lambda: load_config(Checkpoint(folder))

    fuzz("config.json", damaged_json(read_file(tiny_base / "config.json")), drive, sandbox.out, weight=0.1)


def test_weight_files(sandbox, tiny_base, damage_one):
    name = "model.safetensors"

    def read_all(folder: Path):
        checkpoint = Checkpoint(folder)
        for tensor, info in checkpoint.tensors.items():
            assert checkpoint.tensor(tensor).shape == info.shape

    def drive(content: bytes):
        folder = damage_one(tiny_base, name, content)
        return lambda: read_all(folder)

    fuzz("safetensors", damaged_safetensors((tiny_base / name).read_bytes()), drive, sandbox.out, weight=0.06)


def test_index_files(sandbox, tiny_base, damage_one):
    index = {"metadata": {"total_size": 1}, "weight_map": {name: "model.safetensors" for name in ("a", "b", "c")}}

    def read_all(folder: Path):
        checkpoint = Checkpoint(folder)
        assert all(file.parent == folder for file in checkpoint.weight_files)
        return checkpoint.tensors

    def drive(content: bytes):
        folder = damage_one(tiny_base, "model.safetensors.index.json", content)
        return lambda: read_all(folder)

    fuzz("safetensors index", damaged_json(index), drive, sandbox.out, weight=0.05)


class Opens:
    """Unpickling it would leave a file."""

    def __reduce__(self):
        return open, ("pwned", "w")


def test_old_torch_files(sandbox, tiny_base, damage_one):
    base = Checkpoint(tiny_base)
    torch.save({name: base.tensor(name) for name in list(base.tensors)[:3]}, sandbox.out / "whole.bin")
    whole = (sandbox.out / "whole.bin").read_bytes()
    torch.save({"weight": Opens()}, sandbox.out / "code.bin")
    code, plain = (sandbox.out / "code.bin").read_bytes(), pickle.dumps({"weight": Opens()})

    def drive(content: bytes):
        folder = damage_one(tiny_base, "model.safetensors", None)
        (folder / "pytorch_model.bin").write_bytes(content)
        return lambda: Checkpoint(folder).tensors

    files = st.one_of(damaged_file(whole, code, plain), st.sampled_from([code, plain]))
    fuzz("pytorch_model.bin", files, drive, sandbox.out, weight=0.03)
    assert not (sandbox.inputs / "pwned").exists()


def test_tokenizer_files(sandbox, tiny_base, damage_one, read_file):
    tokenizer = tiny_base / "tokenizer.json"
    names = ["tokenizer.json", "tokenizer_config.json"]
    files = {name: damaged_json(read_file(tiny_base / name)) for name in names}
    files["chat_template.jinja"] = damaged_file(b"{{ messages }}")
    files["tokenizer.model"] = damaged_file((tiny_base / "tokenizer.model").read_bytes())
    assert tokenizer.is_file()

    def drive(case: tuple[str, bytes]):
        name, content = case
        folder = damage_one(tiny_base, name, content)
        if name == "tokenizer.model":  # which counts where the fast tokenizer is not saved yet
            (folder / "tokenizer.json").unlink()

        def load():
            tokenizer = load_checkpoint_tokenizer(Checkpoint(folder))
            tokenizer("<image> Hello caf\u00e9 \U0001f600")
            tokenizer.save_pretrained(sandbox.out / "tokenizer")

        return load

    fuzz("tokenizer", one_of_files(files), drive, sandbox.out, weight=0.05)


def test_loading_a_model(sandbox, tiny_base, adapter_folder, damage_one, read_file):
    base = {
        "config.json": damaged_json(read_file(tiny_base / "config.json")),
        "generation_config.json": damaged_json(read_file(tiny_base / "generation_config.json")),
        "model.safetensors": damaged_safetensors((tiny_base / "model.safetensors").read_bytes()),
    }
    adapter = {
        "adapter_config.json": damaged_json(read_file(adapter_folder / "adapter_config.json")),
        "adapter_model.safetensors": damaged_safetensors((adapter_folder / "adapter_model.safetensors").read_bytes()),
    }

    def drive(case: tuple[str, bytes]):
        folder = damage_one(adapter_folder if case[0] in adapter else tiny_base, *case)
        return lambda: load_model(folder) and None

    fuzz("load_model", one_of_files(base | adapter), drive, sandbox.out, weight=0.025)


def test_merging(sandbox, adapter_folder, damage_one, read_file):
    files = {
        "adapter_config.json": damaged_json(read_file(adapter_folder / "adapter_config.json")),
        "adapter_model.safetensors": damaged_safetensors((adapter_folder / "adapter_model.safetensors").read_bytes()),
        "tokenizer_config.json": damaged_json(read_file(adapter_folder / "tokenizer_config.json")),
    }

    def drive(case: tuple[str, bytes]):
        folder = damage_one(adapter_folder, *case)
        merged = sandbox.out / "merged"
        return lambda: merge_lora.main([str(folder), str(merged), "--overwrite", "--skip-self-check"])

    fuzz("tools/merge_lora.py", one_of_files(files), drive, sandbox.out, weight=0.025)


def test_converting_checkpoints(sandbox, tiny_base, damage_one, read_file):
    hf = sandbox.out / "hf"
    convert_to_hf.main([str(tiny_base), str(hf)])
    names = ("config.json", "generation_config.json")
    published = {name: damaged_json(read_file(tiny_base / name)) for name in names}
    converted = {name: damaged_json(read_file(hf / name)) for name in names}

    def drive(case: tuple[bool, tuple[str, bytes]]):
        back, (name, content) = case
        folder = damage_one(hf if back else tiny_base, name, content)
        return lambda: convert_to_hf.main([str(folder), str(sandbox.out / "new"), "--overwrite", *["--back"] * back])

    both = st.one_of(
        st.tuples(st.just(False), one_of_files(published)), st.tuples(st.just(True), one_of_files(converted))
    )
    fuzz("tools/convert_to_hf.py", both, drive, sandbox.out, weight=0.02)


def test_checking_a_download(sandbox, tiny_base, damage_one, read_file):
    files = {
        "config.json": damaged_json(read_file(tiny_base / "config.json")),
        "tokenizer.json": damaged_json(read_file(tiny_base / "tokenizer.json")),
        "model.safetensors": damaged_safetensors((tiny_base / "model.safetensors").read_bytes()),
    }

    def drive(case: tuple[str, bytes]):
        folder = damage_one(tiny_base, *case)
        return lambda: prepare_pretrained.main([str(folder), "--check"])

    fuzz("tools/prepare_pretrained.py", one_of_files(files), drive, sandbox.out, weight=0.02)


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


def test_converting_a_folder_of_pictures(sandbox):
    folder = sandbox.inputs / "captioned"
    folder.mkdir()
    picture(60, 40, 1).save(folder / "a.png")
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

    fuzz("folder of pictures", one_of_files(files), drive, sandbox.out, weight=0.02)


@pytest.fixture
def fast_scorers(monkeypatch):
    """Scores without Java: what is tried here is what reads, not what counts."""

    def run_scorers(references, hypotheses):
        values = [float(len(captions)) for captions in references.values()]
        return [Scored(("CIDEr",), [sum(values)], [values], np.zeros((len(values), 1)), np.sum)], []

    monkeypatch.setattr(score, "tokenize_sides", lambda references, hypotheses: (references, hypotheses))
    monkeypatch.setattr(score, "run_scorers", run_scorers)
    monkeypatch.setattr(score, "intervals", lambda results: {})
    monkeypatch.setattr(compare, "paired_differences", lambda before, after: {})


PREDICTIONS = [{"image_id": 1, "caption": "a cup"}, {"image_id": 2, "caption": "a film"}]


def test_scoring(sandbox, fast_scorers):
    def drive(case: tuple[str, bytes]):
        (sandbox.inputs / "predictions.json").write_text(json.dumps(PREDICTIONS))
        (sandbox.inputs / "truth.json").write_text(json.dumps(COCO))
        (sandbox.inputs / case[0]).write_bytes(case[1])
        return lambda: score.main(["predictions.json", "truth.json", "--json", str(sandbox.out / "scores.json")])

    files = {"predictions.json": damaged_json(PREDICTIONS), "truth.json": damaged_json(COCO)}
    fuzz("internvl.evaluation.score", one_of_files(files), drive, sandbox.out, weight=0.04)


def test_scoring_of_grounding(sandbox, repository):
    scenes = json.loads((repository / "data" / "habitat" / "scenes.json").read_text())
    few = {"val": dict(list(scenes["val"].items())[:2])}
    predictions = [{"image_id": int(image_id), "caption": "a red chair on the left"} for image_id in few["val"]]

    def drive(case: tuple[str, bytes]):
        (sandbox.inputs / "predictions.json").write_text(json.dumps(predictions))
        (sandbox.inputs / "scenes.json").write_text(json.dumps(few))
        (sandbox.inputs / case[0]).write_bytes(case[1])
        return lambda: score_grounding.main(["predictions.json", "scenes.json"])

    files = {"predictions.json": damaged_json(predictions), "scenes.json": damaged_json(few)}
    fuzz("tools/score_grounding.py", one_of_files(files), drive, sandbox.out, weight=0.02)


def test_comparing_results(sandbox, fast_scorers):
    lines = [
        {
            "image_id": row["image_id"],
            "image": "good.png",
            "caption": row["caption"],
            "references": ["a cup"],
            "CIDEr": 1.0,
        }
        for row in PREDICTIONS
    ]
    scores = {"CIDEr": 1.0, "settings": {"checkpoint": "model"}}
    files = {"per_image.jsonl": damaged_lines(*lines), "scores.json": damaged_json(scores)}

    def drive(case: tuple[str, bytes]):
        for name in ("one", "two"):
            folder = sandbox.inputs / name
            folder.mkdir(exist_ok=True)
            (folder / "per_image.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            (folder / "scores.json").write_text(json.dumps(scores))
        (sandbox.inputs / "two" / case[0]).write_bytes(case[1])
        return lambda: compare.main(["one", "two", "--out", str(sandbox.out / "comparison")])

    fuzz("internvl.evaluation.compare", one_of_files(files), drive, sandbox.out, weight=0.03)


def test_caption_sets(sandbox, monkeypatch):
    monkeypatch.setattr(datasets, "REGISTRY", sandbox.inputs / "registry.json")
    monkeypatch.setattr(datasets, "REPOSITORY", sandbox.inputs)
    pictures = [{"image": "good.png", "caption": ["a cup"]}, {"image": "film/1.png"}]
    truth = {**COCO, "images": [{"id": 1}, {"id": 2}]}
    contents = {
        "registry.json": {"set": {"root": ".", "annotation": "pictures.json", "ground_truth": "truth.json"}},
        "pictures.json": COCO,
        "truth.json": truth,
    }
    files = {name: damaged_json(content) for name, content in contents.items()}
    files["pictures.json"] = damaged_json(COCO, pictures)

    def read_set():
        data = read_caption_set("set")
        root = json.loads((sandbox.inputs / "registry.json").read_text())["set"]["root"]
        places = [os.path.realpath(path) for asked in data.questions for path in asked.images]
        assert all(Path(place).is_relative_to(Path(root).resolve()) for place in places)
        check_media(data.questions)
        data.references()

    def drive(case: tuple[str, bytes]):
        for name, content in contents.items():
            (sandbox.inputs / name).write_text(json.dumps(content))
        (sandbox.inputs / case[0]).write_bytes(case[1])
        return read_set

    fuzz("caption set", one_of_files(files), drive, sandbox.out, weight=0.04)


def test_evaluation_of_rows(sandbox):
    (sandbox.inputs / "meta.json").write_text(json.dumps({"set": ENTRY}))

    def drive(case: tuple[bytes, bool]):
        (sandbox.inputs / "rows.jsonl").write_bytes(case[0])

        def read_set():
            (data,) = (
                read_train_sets(Path("meta.json")) if case[1] else [read_custom_set(Path("rows.jsonl"), Path("."))]
            )
            check_media(data.questions)

        return read_set

    fuzz("rows as a caption set", st.tuples(damaged_lines(*ROWS), st.booleans()), drive, sandbox.out, weight=0.04)


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
