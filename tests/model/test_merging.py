"""Merging, against PEFT's own merge and the unmerged model."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from internvl.errors import UserError
from internvl.model.checkpoint import Checkpoint
from internvl.model.loading import load_model
from internvl.model.merging import Source, merge_checkpoint
from internvl.model.packaging import model_code_files
from internvl.model.safetensors_stream import TensorPlan
from tests.conftest import bare_environment


def test_merged_weights_equal_pefts_own_merge(tiny_base, trained_adapter, tmp_path):
    merge_checkpoint(Checkpoint(trained_adapter), tmp_path / "merged")
    ours = load_file(tmp_path / "merged" / "model.safetensors")
    peft = PeftModel.from_pretrained(load_model(tiny_base).model, trained_adapter).merge_and_unload()
    theirs = peft.state_dict()
    assert ours.keys() == theirs.keys() == load_file(tiny_base / "model.safetensors").keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)


def test_merged_folder_loads_with_automodel_from_another_directory(trained_adapter, tmp_path, repository):
    merged = tmp_path / "merged"
    merge_checkpoint(Checkpoint(trained_adapter), merged)
    image = repository / "data" / "habitat" / "images" / "val" / "habitat_val_000000000001.jpg"
    script = repository / "tools" / "caption_with_automodel.py"
    result = subprocess.run(
        [sys.executable, script, merged, image], cwd=tmp_path, capture_output=True, text=True, env=bare_environment()
    )
    assert result.returncode == 0, result.stderr
    unmerged, tokenizer = load_model(trained_adapter)
    from internvl.model.internvl_chat.image_processing_internvl_chat import load_image

    pixels = load_image(image, input_size=56, max_num=12)  # as its config says
    question = "Provide a one-sentence caption for the provided image."
    expected = unmerged.chat(tokenizer, pixels, question, {"min_new_tokens": 8, "max_new_tokens": 30})
    assert result.stdout.strip() == f"{image.name}: {expected}".strip()


def test_documented_cp_lines_keep_the_merged_folder_loadable(tiny_base, trained_adapter, tmp_path):
    merged = tmp_path / "merged"
    merge_checkpoint(Checkpoint(trained_adapter), merged)
    subprocess.run(f"cp {tiny_base}/*.py {merged} && cp {tiny_base}/config.json {merged}", shell=True, check=True)
    model = AutoModel.from_pretrained(merged, trust_remote_code=True)
    ids = torch.arange(40, 60)[None]
    assert torch.equal(model(input_ids=ids).logits, load_model(merged).model(input_ids=ids).logits)


def test_merged_folder_has_exactly_the_expected_files(trained_adapter, tmp_path):
    merge_checkpoint(Checkpoint(trained_adapter), tmp_path / "merged")
    assert {file.name for file in (tmp_path / "merged").iterdir()} == {
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
        *(file.name for file in model_code_files()),
    }  # fmt: skip


def test_dtype_rounds_the_float32_result_once(trained_adapter, tmp_path):
    merge_checkpoint(Checkpoint(trained_adapter), tmp_path / "fp32")
    merge_checkpoint(Checkpoint(trained_adapter), tmp_path / "bf16", dtype="bfloat16")
    full, half = (load_file(tmp_path / name / "model.safetensors") for name in ("fp32", "bf16"))
    assert all(torch.equal(full[name].bfloat16(), half[name]) for name in full)
    assert json.loads((tmp_path / "bf16" / "config.json").read_text())["dtype"] == "bfloat16"


def test_another_base_is_refused(tiny_base, trained_adapter, tmp_path):
    config_file = trained_adapter / "adapter_config.json"
    config = json.loads(config_file.read_text())
    config["auto_mapping"]["base_model_sha256"] = "0" * 64
    config_file.write_text(json.dumps(config))
    with pytest.raises(UserError, match="was trained on a base with other weights"):
        merge_checkpoint(Checkpoint(trained_adapter), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_merging_a_base_or_into_a_full_folder_is_refused(tiny_base, trained_adapter, tmp_path):
    with pytest.raises(UserError, match="nothing to merge"):
        merge_checkpoint(Checkpoint(tiny_base), tmp_path / "merged")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        merge_checkpoint(Checkpoint(trained_adapter), tmp_path / "full")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_nothing_is_left_when_merging_fails_halfway(trained_adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(Source, "read", lambda self, dtype: (_ for _ in ()).throw(OSError("disk gone")))
    with pytest.raises(OSError, match="disk gone"):
        merge_checkpoint(Checkpoint(trained_adapter), tmp_path / "out" / "merged")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("max_bytes", [200, 10_000])
def test_streamed_files_equal_safetensors_own(tmp_path, max_bytes):
    tensors = {
        "a": torch.randn(5, 7),
        "b": torch.randn(3).bfloat16(),
        "c": torch.arange(6).view(2, 3),
        "d": torch.randn(4, 4).half(),
    }
    spelling = {"a": "F32", "b": "BF16", "c": "I64", "d": "F16"}
    plan = TensorPlan({name: (tuple(t.shape), spelling[name]) for name, t in tensors.items()}, max_bytes)
    plan.write(tmp_path, tensors.items())
    read = {}
    for file in tmp_path.glob("*.safetensors"):
        read.update(load_file(file))
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    save_file(tensors, tmp_path / "reference.safetensors", metadata={"format": "pt"})
    if len(plan.shards) == 1:
        size = (tmp_path / "model.safetensors").stat().st_size
        assert abs(size - (tmp_path / "reference.safetensors").stat().st_size) < 64
    else:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert {name: index["weight_map"][name] for name in tensors} == {
            name: plan.file_name(number) for number, names in enumerate(plan.shards) for name in names
        }


def test_a_base_that_was_moved_is_named_and_another_one_only_taken_when_told(trained_adapter, tiny_base, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(tiny_base, moved)
    plain, other = tmp_path / "plain", tmp_path / "other"
    merge_checkpoint(Checkpoint(trained_adapter, base=moved), plain)
    tensors = load_file(moved / "model.safetensors")
    name = "language_model.model.norm.weight"
    tensors[name] = tensors[name] + 1
    save_file(tensors, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="other weights than .*--allow-other-base"):
        merge_checkpoint(Checkpoint(trained_adapter, base=moved), other)
    assert not other.exists()
    merge_checkpoint(Checkpoint(trained_adapter, base=moved), other, allow_other_base=True)
    merged = [Checkpoint(folder).tensor(name) for folder in (plain, other)]
    assert torch.allclose(merged[1], merged[0] + 1)
