"""tools/prepare_coco.py: the three files, in the form the launcher and the evaluation read."""

import json
import subprocess
from pathlib import Path

import pytest

from internvl.commands import prepare_coco
from internvl.data.annotation import AnnotationFile
from internvl.evaluation.datasets import read_images


def karpathy(tmp_path, splits=("train", "restval", "test", "val")):
    images = [
        {
            "cocoid": 100 + number,
            "filepath": "val2014",
            "filename": f"COCO_val2014_{100 + number:012d}.jpg",
            "split": split,
            "sentences": [{"raw": f" Caption {n}\nof {number}. "} for n in range(5 + number)],
        }
        for number, split in enumerate(splits)
    ]
    file = tmp_path / "dataset_coco.json"
    file.write_text(json.dumps({"images": images, "dataset": "coco"}))
    return file


def read(tmp_path):
    folder = tmp_path / "coco" / "annotations"
    rows = AnnotationFile(folder / prepare_coco.TRAIN)
    truth = json.loads((folder / prepare_coco.TRUTH).read_text())
    return [rows.row(index) for index in range(len(rows))], read_images(folder / prepare_coco.TEST, tmp_path), truth


def test_karpathys_split_gives_train_and_restval_rows_and_the_test_images(tmp_path, capsys):
    prepare_coco.main(["--karpathy", str(karpathy(tmp_path)), "--root", str(tmp_path / "coco")])
    rows, test, truth = read(tmp_path)
    assert len(rows) == 5 + 6 and rows[0].images == ("val2014/COCO_val2014_000000000100.jpg",)
    assert rows[0].turns[0].value == "<image>\nProvide a one-sentence caption for the provided image."
    assert rows[0].turns[1].value == "Caption 0 of 0."
    assert [image_id for image_id, _ in test] == [102] == [image["id"] for image in truth["images"]]
    assert len(truth["annotations"]) == 7 and {note["image_id"] for note in truth["annotations"]} == {102}
    printed = capsys.readouterr().out
    assert {note["caption"] for note in truth["annotations"]} == {f"Caption {n} of 2." for n in range(7)}
    assert "not the full Karpathy set: 4 of 123,287" in printed and "4 of 4 images are not in" in printed


def test_real_captions_give_rows_and_references(shared, tmp_path, capsys):
    mini = shared / "coco_mini"
    files = [str(mini / "captions_train2017.json"), str(mini / "captions_val2017.json")]
    prepare_coco.main(["--train", files[0], "--test", files[1], "--root", str(tmp_path / "coco")])
    rows, test, truth = read(tmp_path)
    train, val = (json.loads(Path(file).read_text()) for file in files)
    assert len(rows) == len(train["annotations"]) and len(truth["annotations"]) == len(val["annotations"])
    assert {image_id for image_id, _ in test} == {image["id"] for image in val["images"]}
    assert "not Karpathy's split" in capsys.readouterr().out
    assert all((mini / "images" / row.images[0]).is_file() or (mini / row.images[0]).is_file() for row in rows)


def test_the_full_set_must_have_the_full_counts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare_coco, "FULL_IMAGES", 4)
    with pytest.raises(SystemExit) as end:
        prepare_coco.main(["--karpathy", str(karpathy(tmp_path)), "--root", str(tmp_path / "coco")])
    assert (
        end.value.code == 2 and "has 11 train captions, 1 test images and 7 test captions" in capsys.readouterr().err
    )
    assert not (tmp_path / "coco").exists()
    monkeypatch.setattr(prepare_coco, "FULL_TEST_CAPTIONS", 7)
    monkeypatch.setattr(prepare_coco, "FULL_TRAIN_ROWS", 11)
    monkeypatch.setattr(prepare_coco, "FULL_TEST_IMAGES", 1)
    prepare_coco.main(["--karpathy", str(karpathy(tmp_path)), "--root", str(tmp_path / "coco")])
    assert "This is the full Karpathy set." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give either --karpathy, or --train and --test"),
        (["--train", "a.json"], "belong together"),
        (["--karpathy", "none.json"], "none.json: there is no such file"),
    ],
)
def test_mistakes_end_with_status_2(flags, message, capsys):
    with pytest.raises(SystemExit) as end:
        prepare_coco.main(flags)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_files_that_are_there_are_kept_unless_told_otherwise(tmp_path, capsys):
    flags = ["--karpathy", str(karpathy(tmp_path)), "--root", str(tmp_path / "coco")]
    file = tmp_path / "coco" / "annotations" / prepare_coco.TEST
    file.parent.mkdir(parents=True)
    file.write_text("keep me")
    with pytest.raises(SystemExit) as end:
        prepare_coco.main(flags)
    assert end.value.code == 2 and "coco_karpathy_test.json: is there already" in capsys.readouterr().err
    assert [path.read_text() for path in file.parent.iterdir()] == ["keep me"]
    prepare_coco.main([*flags, "--overwrite"])
    assert len(read(tmp_path)[1]) == 1


def test_an_empty_caption_gives_no_train_row_and_is_counted(tmp_path, capsys):
    file = karpathy(tmp_path)
    content = json.loads(file.read_text())
    content["images"][0]["sentences"][1]["raw"] = " \n"
    file.write_text(json.dumps(content))
    prepare_coco.main(["--karpathy", str(file), "--root", str(tmp_path / "coco")])
    rows, _, _ = read(tmp_path)
    assert len(rows) == 10 and "Left out of the train rows: 1 empty captions." in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--karpathy", "--train"])
def test_files_of_another_form_are_named_by_the_command_line(warm_python, repository, tmp_path, flag):
    file = tmp_path / "captions_train2014.json"
    official = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "A cup."}]}
    file.write_text(json.dumps(official) if flag == "--karpathy" else karpathy(tmp_path).read_text())
    command = [warm_python, repository / "tools" / "prepare_coco.py", flag, file, "--root", tmp_path / "coco"]
    ended = subprocess.run([*command, *(["--test", file] * (flag == "--train"))], capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith(f"error: {file}") and ended.stderr.count("\n") == 1
    assert not (tmp_path / "coco").exists()
