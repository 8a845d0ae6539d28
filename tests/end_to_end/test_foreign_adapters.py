"""Adapters as other programs leave them, on the shipped base: merged and evaluated, or refused by both in one way.

The inputs are cases 03 to 07 and 27 of the cases beside the project: public reports, with made-up weights.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from internvl.commands import convert_to_hf, merge_lora
from internvl.inference.engine import Engine, Request
from tests.conftest import make_image

TINY = "pretrained/InternVL2-Tiny"


@pytest.fixture
def cases(shared, repository, monkeypatch) -> Path:
    monkeypatch.chdir(repository)  # from where their base is called pretrained/InternVL2-Tiny
    return shared / "cases"


def merge(adapter: Path, out: Path, *flags: str) -> dict:
    """Return the merged tensors of a merge that passes its self-check."""
    merge_lora.main([str(adapter), str(out), *flags])
    return load_file(out / "model.safetensors")


def evaluate(adapter: Path, out: Path, *flags: str) -> list[str]:
    """Return the captions of two images, as evaluate.sh makes them."""
    from internvl.commands import evaluate_caption

    data = ["--datasets", "habitat", "--limit", "2", "--dynamic", "--precision", "fp32"]
    evaluate_caption.main(["--checkpoint", str(adapter), *data, "--out-dir", str(out), *flags])
    return [line["caption"] for line in json.loads((out / "predictions.json").read_text())]


def answer(folder: Path) -> str:
    """Return the answer about an image, by the engine that evaluation and chat use."""
    engine = Engine.load(folder, precision="fp32", device="cpu")
    request = Request([engine.read(make_image(300, 200, 3))], "Describe it.")
    return engine.answer([request], max_new_tokens=16, do_sample=False)[0]


@pytest.mark.parametrize(
    "name",
    ["03/mixed_rank", "03/own_alpha", "03/one_layer", "04/vision", "06/projector", "06/output", "06/projector_swift"],
)
def test_it_merges_to_the_expected_weights_and_answers_alike(name, cases, tmp_path):
    merged = merge(cases / name, tmp_path / "merged")
    for tensor, expected in load_file(cases / f"{name}.expected.safetensors").items():
        assert (merged[tensor] - expected).abs().max() < 1e-6
    assert answer(cases / name) == answer(tmp_path / "merged")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("04/language", "layers.0.attention.wqkv, which has none in the base, so it cannot be merged"),
        ("05/pissa", "init_lora_weights: is 'pissa', and PiSSA takes"),
        ("05/olora", "init_lora_weights: is 'olora', and OLoRA takes"),
        ("27/zero3_empty", "8 of 8 tensors are empty, first"),
        ("27/zero3_half_empty", "4 of 8 tensors are empty, first"),
        pytest.param(
            "27/hub_base",
            "is 'OpenGVLab/InternVL2-2B', which is not there. Name the folder of the base",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_it_is_refused_with_its_own_cause_by_merge_and_evaluation(name, message, cases, tmp_path, capsys):
    said = []
    for command in (merge, evaluate):
        with pytest.raises(SystemExit, match="2"):
            command(cases / name, tmp_path / command.__name__ / "out")
        said.append(capsys.readouterr().err)
    assert message in said[0] and said[0].splitlines()[-1] == said[1].splitlines()[-1]
    assert "Use the base it was trained on" not in said[0]
    assert not (tmp_path / "merge").exists() and not (tmp_path / "evaluate").exists()
    if name == "27/hub_base":  # and what the message says leads on
        merge(cases / name, tmp_path / "merged", "--base", TINY)
        captions = evaluate(cases / name, tmp_path / "with_base", "--base", TINY)
        assert captions == evaluate(tmp_path / "merged", tmp_path / "of_merged")


@pytest.mark.parametrize("name", ["state_dict_names", "language_model_only", "bin"])
def test_other_ways_to_save_one_adapter_give_one_model(name, cases, tmp_path):
    expected = merge(cases / "27" / "hub_base", tmp_path / "expected", "--base", TINY)
    merged = merge(cases / "27" / name, tmp_path / "merged")
    # It is the same pairs of layers, under other names and in another file.
    assert all((merged[tensor] == expected[tensor]).all() for tensor in expected)
    assert answer(cases / "27" / name) == answer(tmp_path / "merged")


@pytest.mark.slow
def test_an_adapter_of_the_hf_copy_goes_its_whole_way(cases, tmp_path, capsys):
    """Merge and evaluation take it; the converter names the merge, whose result needs no converting."""
    shutil.copyfile(cases / "lib.py", tmp_path / "lib.py")
    (tmp_path / "07").mkdir()
    shutil.copyfile(cases / "07" / "make.py", tmp_path / "07" / "make.py")
    hf, adapter = tmp_path / "hf", tmp_path / "07" / "adapter"
    convert_to_hf.main([TINY, str(hf)])
    subprocess.run([sys.executable, tmp_path / "07" / "make.py", hf], check=True)

    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        convert_to_hf.main(["--back", str(adapter), str(tmp_path / "back")])
    said = capsys.readouterr().err
    command = said.rpartition("Merge it instead, which writes the published layout at once: ")[2].split()
    assert command == ["python", "tools/merge_lora.py", str(adapter), "MERGED"]
    merged = merge(adapter, tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["model_type"] == "internvl_chat"
    assert merged.keys() == load_file(Path(TINY) / "model.safetensors").keys()
    assert evaluate(adapter, tmp_path / "one") == evaluate(tmp_path / "merged", tmp_path / "two")
    again = merge(adapter, tmp_path / "with_base", "--base", TINY)
    assert all((merged[tensor] == again[tensor]).all() for tensor in merged)

    with pytest.raises(SystemExit, match="2"):
        convert_to_hf.main([str(adapter), str(tmp_path / "there")])
    assert "has transformers' layout already. Pass --back" in capsys.readouterr().err
    convert_to_hf.main([str(tmp_path / "merged"), str(tmp_path / "there")])
