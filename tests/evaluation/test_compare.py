"""Two results side by side."""

import json

import pytest

from internvl.errors import UserError
from internvl.evaluation.compare import main
from tests.conftest import make_image

WORDS = "red blue green small large wet dry old new shiny".split()


def write_result(folder, captions: dict[int, str], checkpoint: str, image_file) -> None:
    folder.mkdir()
    (folder / "scores.json").write_text(json.dumps({"settings": {"checkpoint": checkpoint}}))
    lines = [
        {
            "image_id": k,
            "image": str(image_file),
            "caption": caption,
            "references": [f"a {WORDS[k]} dog runs", f"some {WORDS[k]} dogs"],
        }
        for k, caption in captions.items()
    ]
    (folder / "per_image.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def results(tmp_path):
    make_image(30, 20, 1).save(tmp_path / "p.png")
    write_result(tmp_path / "a", dict.fromkeys(range(10), "a dog"), "base", tmp_path / "p.png")
    better = {k: f"a {word} dog runs" for k, word in enumerate(WORDS)}
    write_result(tmp_path / "b", better, "adapter", tmp_path / "p.png")
    return tmp_path


def test_differences_are_paired_shown_and_written(results, capsys):
    main([str(results / "a"), str(results / "b"), "--out", str(results / "out")])
    record = json.loads((results / "out" / "comparison.json").read_text())
    for name, difference in record["differences"].items():
        assert difference["value"] == pytest.approx(record["second"][name] - record["first"][name])
        assert difference["low"] <= difference["value"] <= difference["high"], name
    assert record["differences"]["CIDEr"]["low"] > 0 and record["differences"]["CIDEr"]["p_value"] == 0
    printed = capsys.readouterr().out
    assert "adapter minus base" in printed and printed.splitlines()[-1] == str(results / "out" / "comparison.html")
    page = (results / "out" / "comparison.html").read_text()
    for shown in ("base", "adapter", "a dog", "a shiny dog runs", "Most gained first", "&lt; 0.001"):
        assert shown in page


def test_results_of_other_images_or_references_are_refused(results):
    def fails(*folders) -> str:
        with pytest.raises(UserError) as raised:
            main.__wrapped__([str(folder) for folder in folders])
        return str(raised.value)

    assert "is not a result folder" in fails(results / "a", results)
    lines = (results / "b" / "per_image.jsonl").read_text().splitlines()
    (results / "b" / "per_image.jsonl").write_text("\n".join(lines[1:]))
    assert "9; 1 are in one only, such as 0" in fails(results / "a", results / "b")
    (results / "b" / "per_image.jsonl").write_text("\n".join([lines[0].replace("some", "two"), *lines[1:]]))
    assert "other references" in fails(results / "a", results / "b")
    (results / "b" / "per_image.jsonl").write_text("\n".join([lines[0], "{"]))
    assert "per_image.jsonl:2: is damaged" in fails(results / "a", results / "b")
