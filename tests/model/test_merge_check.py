"""The check of a merge against PEFT: what it lets through, what it stops, and that a stopped merge leaves nothing."""

import pytest
import torch

from internvl.commands import merge_lora
from internvl.errors import UserError
from internvl.model import lora
from internvl.model.adapter_reading import read_adapter
from internvl.model.checkpoint import Checkpoint
from internvl.model.loading import load_config, load_model, source_of
from internvl.model.merge_check import PeftMerge, peft_name
from internvl.model.merging import merge_checkpoint
from tests.model.random_adapters import LANGUAGE, rewrite, save, wrap

LAYER = "language_model.model.layers.0.attention.wo"


@pytest.fixture
def adapter(tiny_base, tmp_path):
    settings = {"r": 4, "lora_alpha": 12, "target_modules": LANGUAGE, "modules_to_save": ["mlp1"], "use_dora": True}
    return save(wrap(load_model(tiny_base).model, settings), tmp_path / "adapter", tiny_base)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_right_merge_passes_in_every_dtype(dtype, adapter, tmp_path, capsys):
    merge_lora.main([str(adapter), str(tmp_path / "merged"), "--dtype", dtype])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("Merged 16 weights in ") and printed[-1] == str(tmp_path / "merged")
    assert printed[1].startswith("Self-check: PEFT's own merge gives the same 69 weights (largest difference ")
    assert "merged model both answer" in printed[1] or dtype != "float32"


def test_an_adapter_of_a_part_for_a_task_is_checked_on_that_part(tiny_base, tmp_path, capsys):
    peft = wrap(load_model(tiny_base).model.language_model.model, {"r": 4, "target_modules": LANGUAGE})
    folder = rewrite(save(peft, tmp_path / "adapter", tiny_base), task_type="CAUSAL_LM")
    merge_lora.main([str(folder), str(tmp_path / "merged")])
    assert "PEFT's own merge gives the same 69 weights" in capsys.readouterr().out


FAULTS = {
    "scaling": lambda merge: lambda kind, weight, a, b, scaling, m: merge(kind, weight, a, b, scaling * 1.01, m),
    "magnitude": lambda merge: lambda kind, weight, a, b, scaling, m: merge(kind, weight, a, b, scaling, None),
    "no number": lambda merge: lambda kind, weight, *_: weight * torch.tensor(float("nan")),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_wrong_merge_is_stopped_before_it_gets_its_name(fault, adapter, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lora, "merge_weight", fault(lora.merge_weight))
    out = tmp_path / "out" / "merged"
    with pytest.raises(SystemExit, match="2"):
        merge_lora.main([str(adapter), str(out)])
    said = capsys.readouterr().err
    assert "from what PEFT's own merge gives. Nothing was written" in said or "merged is not finite in float32" in said
    assert list(out.parent.iterdir()) == []


def test_a_fault_in_reading_the_config_is_found_although_loading_shares_it(adapter, tmp_path, monkeypatch):
    right = lora.LoraSettings.scaling
    monkeypatch.setattr(lora.LoraSettings, "scaling", lambda self, layer: 2 * right(self, layer))
    with pytest.raises(SystemExit, match="2"):
        merge_lora.main([str(adapter), str(tmp_path / "merged")])
    assert not (tmp_path / "merged").exists()


def test_what_peft_itself_does_not_read_is_written_only_without_the_check(adapter, tmp_path, capsys):
    rewrite(adapter, layers_pattern="layers")  # which PEFT takes with layers_to_transform only
    with pytest.raises(SystemExit, match="2"):
        merge_lora.main([str(adapter), str(tmp_path / "merged")])
    assert "PEFT itself does not read this adapter (When `layers_pattern`" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()
    merge_lora.main([str(adapter), str(tmp_path / "merged"), "--skip-self-check"])
    assert "Self-check" not in capsys.readouterr().out


def test_a_merge_that_half_precision_cannot_hold_is_refused_with_one_that_can(adapter, tmp_path):
    rewrite(adapter, change=lambda name, tensor: tensor * 1e5 if name.endswith("mlp1.0.weight") else tensor)
    with pytest.raises(UserError, match=r"mlp1.0.weight merged is not finite in float16\. Pass --dtype bfloat16, or"):
        merge_checkpoint(Checkpoint(adapter), tmp_path / "merged", dtype="float16")
    assert not (tmp_path / "merged").exists()
    merge_checkpoint(Checkpoint(adapter), tmp_path / "merged", dtype="bfloat16")


def test_a_base_with_a_number_that_is_none_is_not_merged(adapter, tmp_path, monkeypatch):
    read = Checkpoint.tensor

    def broken(self, name: str) -> torch.Tensor:
        return read(self, name) * (float("nan") if name.endswith("model.norm.weight") else 1)

    monkeypatch.setattr(Checkpoint, "tensor", broken)
    with pytest.raises(UserError, match=r"model.norm.weight merged is not finite in float32\. Copy the checkpoint"):
        merge_checkpoint(Checkpoint(adapter), tmp_path / "merged")


def test_the_reference_is_the_same_for_every_dtype_of_the_merge(adapter, tmp_path):
    checkpoint = Checkpoint(adapter)
    merge_checkpoint(checkpoint, tmp_path / "merged", dtype="bfloat16")
    reference = PeftMerge(read_adapter(checkpoint, load_config(checkpoint)), source_of(checkpoint))
    merged = Checkpoint(tmp_path / "merged")
    assert merged.tensor(f"{LAYER}.weight").dtype == torch.bfloat16
    assert reference.check(merged).startswith("PEFT's own merge gives the same")


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        (f"{LAYER}.lora_A.default.weight", f"base_model.model.{LAYER}.lora_A.weight"),
        (f"base_model.model.{LAYER}.lora_B.mine.bias", f"base_model.model.{LAYER}.lora_B.bias"),
        (f"base_model.model.{LAYER}.lora_magnitude_vector.default.weight",
         f"base_model.model.{LAYER}.lora_magnitude_vector"),
        ("language_model.base_model.model.model.layers.0.attention.wo.lora_A.default.weight",
         f"base_model.model.{LAYER}.lora_A.weight"),
        ("base_model.model.tok.lora_embedding_A.default", "base_model.model.tok.lora_embedding_A"),
        ("base_model.model.mlp1.modules_to_save.default.0.weight", "base_model.model.mlp1.0.weight"),
        ("base_model.model.mlp1.0.weight", "base_model.model.mlp1.0.weight"),
    ],
)  # fmt: skip
def test_peft_gets_the_names_it_would_have_written(stored, name):
    assert peft_name(stored) == name
