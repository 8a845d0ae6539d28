"""Tensors of adapter files that cannot be read: each is refused by name and cause, and nothing is written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from internvl.commands.merge_lora import main as merge_lora
from internvl.errors import UserError
from internvl.json_files import write_json
from internvl.model.checkpoint import Checkpoint
from internvl.model.loading import load_model
from tests.conftest import REPOSITORY, free_port
from tests.model.random_adapters import LANGUAGE, rewrite, save, wrap
from tests.model.refusals import assert_refused

LAYER = "base_model.model.language_model.model.layers.0.attention.wo"
SETTINGS = {"r": 4, "lora_alpha": 12, "target_modules": LANGUAGE, "modules_to_save": ["mlp1"]}


@pytest.fixture
def adapter(tiny_base, tmp_path) -> Path:
    return save(wrap(load_model(tiny_base).model, SETTINGS), tmp_path / "adapter", tiny_base)


def add(**tensors):
    """Put further tensors into the file, _ standing for what follows LAYER."""

    def change(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        save_file(load_file(file) | tensors, file)

    return change


def changed(end: str, change):
    """Change the tensors whose name ends so; None removes them."""

    def apply(folder: Path) -> None:
        rewrite(folder, change=lambda name, tensor: change(tensor) if name.endswith(end) else tensor)

    return apply


def renamed(old: str, new: str):
    return lambda folder: rewrite(folder, lambda name: name.replace(old, new))


def with_number(value: float):
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return change


REFUSED = {
    "empty": (changed("", lambda tensor: tensor[:0]), r"tensors are empty, first .* as DeepSpeed ZeRO-3 leaves them"),
    "half empty": (changed("lora_B.weight", lambda _: torch.zeros(0)), r": 10 of 26 tensors are empty, .*lora_B"),
    "nan": (changed("0.attention.wo.lora_B.weight", with_number(float("nan"))), r"wo.lora_B.weight' holds NaN or inf"),
    "infinity": (changed("mlp1.0.weight", with_number(float("inf"))), r"mlp1.0.weight' holds NaN or infinity"),
    "no B": (changed("0.attention.wo.lora_B.weight", lambda _: None), r"wo.lora_A.weight' but not lora_B beside it"),
    "no A": (changed("0.attention.wo.lora_A.weight", lambda _: None), r"wo.lora_B.weight' but not lora_A beside it"),
    "saved module": (changed("mlp1.3.bias", lambda _: None), r"lacks mlp1.3.bias, and modules_to_save says"),
    "one part more": (add(**{f"{LAYER}.lora_B.bias": torch.ones(64)}), r":lora_bias: is false, and .*lora_B.bias'"),
    "DoRA's": (add(**{f"{LAYER}.lora_magnitude_vector": torch.ones(64)}), r":use_dora: is false, and the adapter"),
    "embedding's": (add(**{f"{LAYER}.lora_embedding_A": torch.ones(4, 64)}), r"is not what LoRA of a Linear has"),
    "a norm": (renamed("0.attention.wo.", "0.ffn_norm."), r"has LoRA of .*ffn_norm, and PEFT has none for layers of"),
    "other ranks": (changed("wo.lora_B.weight", lambda tensor: tensor[:, :2]), r"which do not go together\. Copy"),
    "one dimension": (changed("wo.lora_A.weight", lambda tensor: tensor[0]), r"which do not go together\. Copy"),
    "another width": (changed("wo.lora_A.weight", lambda tensor: tensor[:, :32].contiguous()),
                      r"wo.lora_A.weight' has shape \(4, 32\), and .*wo of shape \(64, 64\) in the base needs "
                      r"\(4, 64\)\. Use the base it was trained on"),
    "another projector": (changed("mlp1.0.weight", lambda tensor: tensor[:9]), r"0.weight' of shape \(9,\) does not"),
    "deeper": (renamed("layers.1.", "layers.7."), r"layers.7.* has no place in the base model, .* fewer layers\. Use"),
    "another model": (renamed("attention.wo", "self_attn.c_proj"), r"is not a layer of an InternVL-Chat model"),
    "other methods": (renamed("wo.lora_A.weight", "wo.hada_w1_a"), r"hada_w1_a' is not a tensor of LoRA or DoRA"),
    "two adapters": (renamed("wo.lora_A.weight", "wo.lora_A.one.weight"), None),
    "two values": (add(**{"mlp1.0.bias": torch.ones(192)}), r"are two values for one place\. Remove the one that is"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), REFUSED.values(), ids=REFUSED)
def test_a_tensor_that_is_not_read_is_named_and_nothing_is_written(damage, message, adapter, tmp_path, capsys):
    damage(adapter)
    if message is None:
        renamed("wo.lora_B.weight", "wo.lora_B.two.weight")(adapter)
        message = r"holds several adapters \('one', 'two'\)"
    assert_refused(adapter, message, tmp_path, capsys)


def test_an_empty_file_and_one_that_is_not_there_are_named(adapter):
    save_file({}, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="holds no tensors. Copy the file again"):
        load_model(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="lacks adapter_model.safetensors"):
        load_model(adapter)


def test_an_old_file_that_holds_more_than_tensors_is_refused(adapter):
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"weight": Path}, adapter / "adapter_model.bin")
    with pytest.raises(UserError, match="is damaged, or holds more than tensors"):
        load_model(adapter)


def test_one_of_several_adapters_is_saved_as_the_message_says(tiny_base, tmp_path):
    settings = SETTINGS | {"modules_to_save": None}
    peft = get_peft_model(load_model(tiny_base).model, LoraConfig(**settings), adapter_name="mine")
    peft.add_adapter("other", LoraConfig(**settings))
    peft.save_pretrained(tmp_path / "out", selected_adapters=["mine"])
    folder = rewrite(tmp_path / "out" / "mine", base_model_name_or_path=str(tiny_base))
    load_model(folder)


@pytest.mark.parametrize("layer", ["tok_embeddings", "output"])
def test_layers_that_share_their_weights_in_the_base_are_refused(layer, tiny_base, tmp_path):
    tied = tmp_path / "tied"
    shutil.copytree(tiny_base, tied)
    config = Checkpoint(tied).config
    write_json(tied / "config.json", config | {"llm_config": config["llm_config"] | {"tie_word_embeddings": True}})
    peft = wrap(load_model(tiny_base).model, {"r": 4, "target_modules": [layer]})
    folder = save(peft, tmp_path / "adapter", tied)
    with pytest.raises(UserError, match=rf"changes .*{layer}.weight, and in this base the embeddings and"):
        load_model(folder)


@pytest.mark.parametrize("given", ["--base", "entry"])
def test_a_base_by_its_hub_name_is_named_by_the_flag_or_the_entry(given, adapter, tiny_base, tmp_path, capsys):
    rewrite(adapter, base_model_name_or_path="OpenGVLab/InternVL2-2B")
    out = str(tmp_path / "merged")
    with pytest.raises(SystemExit, match="2"):
        merge_lora([str(adapter), out])
    assert (
        "base_model_name_or_path: is 'OpenGVLab/InternVL2-2B', which is not there. Name the folder of the base model "
        "with --base, or correct the entry." in capsys.readouterr().err
    )
    if given == "--base":
        merge_lora([str(adapter), out, "--base", str(tiny_base)])
    else:
        merge_lora([str(rewrite(adapter, base_model_name_or_path=str(tiny_base))), out])


def test_a_base_that_is_no_base_is_refused(adapter, tiny_base, tmp_path):
    with pytest.raises(UserError, match=r"--base: is '/no/where', which is not there\. Name the folder"):
        load_model(Checkpoint(adapter, base="/no/where"))
    with pytest.raises(UserError, match=r"--base: is '.*', an adapter itself\. Name the whole model"):
        load_model(Checkpoint(adapter, base=adapter))
    with pytest.raises(UserError, match=r"--base: .* is a whole model, not an adapter\. Remove the flag"):
        Checkpoint(tiny_base, base=tiny_base)


SAVE_UNDER_ZERO3 = """
import sys
import deepspeed
from internvl.model.loading import load_model
from tests.model.random_adapters import LANGUAGE, save, wrap

base, outside, inside = sys.argv[1:]
deepspeed.init_distributed("gloo")
peft = wrap(load_model(base).model, {"r": 4, "target_modules": LANGUAGE})
trained = [parameter for parameter in peft.parameters() if parameter.requires_grad]
optimizer = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}
stage = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1}
deepspeed.initialize(model=peft, model_parameters=trained, config={**stage, "optimizer": optimizer})
save(peft, outside, base)
with deepspeed.zero.GatheredParameters(list(peft.parameters())):
    save(peft, inside, base)
"""


@pytest.mark.slow
def test_what_zero3_leaves_is_empty_and_whole_when_saved_as_the_message_says(tiny_base, tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    settings = alone | {"MASTER_PORT": str(free_port()), "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", SAVE_UNDER_ZERO3, tiny_base, outside, inside]
    done = subprocess.run(command, env=os.environ | settings, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(UserError, match=r"save_pretrained inside deepspeed\.zero\.GatheredParameters\(model\.param"):
        load_model(outside)
    load_model(inside)
