"""check_serving against servers with one fault each, which answer through the project's own engine."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from internvl.commands.check_serving import main as check
from internvl.inference import serving_check
from internvl.inference.engine import Engine
from internvl.model.checkpoint import Checkpoint
from internvl.model.export import adapter_to_hf
from internvl.model.hf_conversion import convert_to_hf
from internvl.model.merging import merge_checkpoint
from tests.inference.fake_server import PUBLISHED_TEMPLATE, FakeServer, running

NO_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' }}{% endfor %}{{ '<|im_start|>assistant\n' }}"
)


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch):
    monkeypatch.setattr(serving_check, "MAX_NEW_TOKENS", 8)


def load(folder, max_tiles=12) -> Engine:
    return Engine.load(folder, precision="fp32", device="cpu", max_tiles=max_tiles)


@pytest.fixture
def merged(trained_adapter, tmp_path):
    merge_checkpoint(Checkpoint(trained_adapter), tmp_path / "merged")
    return tmp_path / "merged"


@pytest.fixture
def findings(capsys):
    """``findings(server, checkpoint, *flags)`` returns (status, what the tool says)."""

    def run(server: FakeServer, checkpoint, *flags) -> tuple[int, str]:
        with running(server) as url:
            try:
                check([url, "--checkpoint", str(checkpoint), *map(str, flags)])
                status = 0
            except SystemExit as end:
                status = end.code
        told = capsys.readouterr()
        return status, told.err if status else told.out

    return run


@pytest.mark.parametrize("tells", [True, False])
def test_the_right_server_gets_one_line(findings, merged, tells):
    status, told = findings(FakeServer({"m": load(merged)}, tells=tells), merged)
    assert status == 0 and len(told.splitlines()) == 1, told
    assert f"m answers as {merged} does: prompts and tiles are the same, 7 of 7" in told or not tells
    assert "answers are equal" in told


def test_every_kind_of_folder_is_taken(findings, merged, trained_adapter, tiny_base, tmp_path):
    convert_to_hf(Checkpoint(merged), tmp_path / "hf")
    convert_to_hf(Checkpoint(tiny_base), tmp_path / "hf_base")
    adapter_to_hf(Checkpoint(trained_adapter), tmp_path / "hf_adapter", hf_base=tmp_path / "hf_base")
    engine = load(merged)
    for folder in (trained_adapter, tmp_path / "hf", tmp_path / "hf_adapter"):
        assert findings(FakeServer({"m": engine}), folder)[0] == 0, folder


def test_a_server_in_bfloat16_is_the_same_within_rounding(findings, merged):
    engine = load(merged)
    engine.model.bfloat16()
    status, told = findings(FakeServer({"m": engine}), merged)
    assert status == 0 and "the same within bf16" in told, told


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize(
    ("template", "name"),
    [
        (PUBLISHED_TEMPLATE, "the published chat template, with a newline behind <|im_end|> and no system text"),
        (NO_SYSTEM, "the system text is missing"),
        (PUBLISHED_TEMPLATE.replace("role'] + '\n'", "role'] + ': '"), "an unknown chat template"),
    ],
)
def test_another_template_is_named(findings, merged, template, name, tells):
    status, told = findings(FakeServer({"m": load(merged)}, template=template, tells=tells), merged)
    assert status == 2 and f"the prompt is another one: {name}" in told, told
    assert ("token " in told) == tells
    assert "Traceback" not in told


@pytest.mark.parametrize(("limit", "tells"), [(6, True), (1, False), (13, False)])
def test_another_limit_of_tiles_is_named(findings, merged, limit, tells):
    status, told = findings(FakeServer({"m": load(merged, max_tiles=limit)}, tells=tells), merged)
    assert status == 2 and f"images are cut with a limit of {limit} tiles instead of 12" in told, told
    assert len(told.splitlines()) == 1 and "weights" not in told


def test_a_missing_thumbnail_is_named(findings, merged):
    engine = load(merged)
    engine.images.tiling = engine.tiling = replace(engine.tiling, use_thumbnail=False)
    status, told = findings(FakeServer({"m": engine}), merged)
    assert status == 2 and "images are cut without a thumbnail" in told


@pytest.mark.parametrize("tells", [True, False])
def test_the_base_without_its_adapter_is_named(findings, trained_adapter, tiny_base, merged, tells):
    server = FakeServer({"base": load(tiny_base)}, tells=tells)
    for folder, flags in ((trained_adapter, []), (merged, ["--base", tiny_base])):
        status, told = findings(server, folder, *flags)
        assert status == 2 and f"the weights are others: those of {tiny_base}, the base without its adapter" in told


@pytest.mark.parametrize("tells", [True, False])
def test_the_merge_of_an_earlier_training_is_named(findings, merged, tiny_base, tmp_path, tells):
    stale = tmp_path / "stale"
    shutil.copytree(merged, stale)
    weights = load_file(stale / "model.safetensors")
    base = load_file(tiny_base / "model.safetensors")
    halfway = {name: torch.lerp(base[name].float(), weights[name].float(), 0.5) for name in weights}
    save_file(halfway, stale / "model.safetensors", metadata={"format": "pt"})
    status, told = findings(FakeServer({"m": load(stale)}, tells=tells), merged, "--base", tiny_base)
    assert status == 2 and "as after a merge of an earlier training. Merge again" in told, told


def test_a_server_without_images_is_named(findings, merged):
    status, told = findings(FakeServer({"m": load(merged)}, sees=False), merged)
    assert status == 2 and "images are refused with status 400 (At most 0 image(s)" in told, told


def test_a_server_that_breaks_is_named(findings, merged):
    status, told = findings(FakeServer({"m": load(merged)}, breaks_after=0), merged)
    assert status == 2 and "the server refused with status 500 (the engine has died)" in told
