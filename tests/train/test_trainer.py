"""The trainer where it touches transformers' private side, and what a training's own saves give back."""

import inspect
import json

import pytest
import torch
from peft import PeftModel
from transformers import Trainer
from transformers.trainer_callback import ExportableState, TrainerControl, TrainerState

from internvl.errors import UserError
from internvl.model.adapter import choose_trainable, load_trained, save_adapter, unwrapped
from internvl.model.checkpoint import Checkpoint
from internvl.model.loading import load_model
from internvl.train.output import OutputFolder
from internvl.train.trainer import FinetuneTrainer, SkippedRows

FROZEN = {"freeze_llm": True, "freeze_backbone": True, "freeze_mlp": True}
OVERRIDDEN = sorted(name for name in vars(FinetuneTrainer) if name.startswith("_") and hasattr(Trainer, name))
CALLED = {"_save_optimizer_and_scheduler": 1, "_save_scaler": 1, "_save_rng_state": 1}


def test_the_private_methods_that_are_overridden_are_these():
    assert [name for name in OVERRIDDEN if not name.startswith("__")] == [
        "_load_best_model", "_load_from_checkpoint", "_save", "_save_checkpoint",
    ]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in OVERRIDDEN if not name.startswith("__")])
def test_an_overridden_private_method_has_the_signature_of_the_installed_transformers(name):
    ours, theirs = (inspect.signature(getattr(owner, name)) for owner in (FinetuneTrainer, Trainer))
    described = [[(p.name, p.kind, p.default) for p in signature.parameters.values()] for signature in (ours, theirs)]
    assert described[0] == described[1]


@pytest.mark.parametrize(("name", "number"), CALLED.items())
def test_a_private_method_that_saving_calls_takes_a_folder_alone(name, number):
    parameters = list(inspect.signature(getattr(Trainer, name)).parameters.values())
    assert [p.name for p in parameters] == ["self", "output_dir"] and len(parameters) - 1 == number


def test_lora_is_one_wrap_around_the_whole_model_and_without_it_there_is_none(tiny_base):
    model = load_model(tiny_base).model
    whole = choose_trainable(model, **FROZEN, use_llm_lora=4, use_backbone_lora=2)
    assert isinstance(whole, PeftModel) and unwrapped(whole) is model
    assert sum(isinstance(module, PeftModel) for module in whole.modules()) == 1
    model = load_model(tiny_base).model
    assert choose_trainable(model, freeze_llm=True) is model and unwrapped(model) is model


def moved(tiny_base, seed: int, **flags):
    """A model as in the middle of a training."""
    model, tokenizer = load_model(tiny_base)
    whole = choose_trainable(model, **(FROZEN | flags), use_llm_lora=4)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in whole.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return whole, tokenizer


def equal(one, two) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("full", [False, True], ids=["adapter", "whole model"])
@pytest.mark.parametrize("flags", [{}, {"freeze_mlp": False}, {"use_backbone_lora": 2}], ids=str)
def test_what_is_saved_of_a_training_is_put_back_into_it(full, flags, tiny_base, tmp_path):
    whole, tokenizer = moved(tiny_base, 1, **flags)
    output = OutputFolder(tmp_path, base=Checkpoint(tiny_base), tokenizer=tokenizer, save_full_model=full)
    output.save_model(whole)
    saved = Checkpoint(tmp_path)
    assert saved.is_adapter is not full and saved.has_embedded_lora is full
    other, _ = moved(tiny_base, 2, **flags)
    assert not equal(other, whole)
    load_trained(other, saved)
    assert equal(other, whole)
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path).model(input_ids=ids).logits, whole.eval()(input_ids=ids).logits)


def test_what_another_training_saved_is_not_put_into_this_one(tiny_base, tmp_path):
    whole, _ = moved(tiny_base, 1, use_backbone_lora=2)
    save_adapter(whole, tmp_path, base=tiny_base, base_sha256="0" * 64)
    with pytest.raises(UserError, match=r"vision_model.* has no place in the model that trains\. Pass --over"):
        load_trained(moved(tiny_base, 1)[0], Checkpoint(tmp_path))
    other = choose_trainable(load_model(tiny_base).model, **FROZEN, use_llm_lora=8, use_backbone_lora=2)
    with pytest.raises(UserError, match=r"does not fit the model that trains \(size mismatch .*--overwrite"):
        load_trained(other, Checkpoint(tmp_path))


def test_skipped_rows_go_through_the_trainers_state(tmp_path):
    rows = SkippedRows()
    rows.rows, rows.steps = [{"where": "a:1", "reason": "torn"}], [3]
    rows.saved = rows.gather()
    state = TrainerState(stateful_callbacks=[TrainerControl(), rows])
    assert isinstance(rows, ExportableState)
    state.stateful_callbacks["SkippedRows"] = rows.state()
    state.save_to_json(str(tmp_path / "trainer_state.json"))
    json.loads((tmp_path / "trainer_state.json").read_text())
    again = SkippedRows()
    again.on_train_begin(None, TrainerState.load_from_json(str(tmp_path / "trainer_state.json")), None)
    again.rows = [{"where": "b:2", "reason": "cut"}]
    assert [row["where"] for row in again.gather()] == ["a:1", "b:2"] and again.steps == [3]
