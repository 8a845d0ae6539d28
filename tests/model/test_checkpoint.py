"""Reading checkpoint folders: kinds, and what is wrong with broken ones."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from internvl.errors import UserError
from internvl.model.checkpoint import Checkpoint
from internvl.model.loading import load_model


def test_a_sharded_folder_reads_like_a_single_file(tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "sharded")
    tensors = load_file(tmp_path / "sharded" / "model.safetensors")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    names = list(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, tmp_path / "sharded" / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = tmp_path / "sharded" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    checkpoint = Checkpoint(tmp_path / "sharded")
    assert checkpoint.tensors.keys() == tensors.keys()
    assert all(torch.equal(checkpoint.tensor(name), tensors[name]) for name in names)
    ids = torch.arange(40, 60)[None]
    one, two = load_model(tiny_base).model, load_model(tmp_path / "sharded").model
    assert torch.equal(one(input_ids=ids).logits, two(input_ids=ids).logits)
    (tmp_path / "sharded" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="lacks model-00002-of-00002.safetensors"):
        load_model(tmp_path / "sharded")


def test_an_old_torch_file_is_read_without_pickle(tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "old")
    tensors = load_file(tmp_path / "old" / "model.safetensors")
    (tmp_path / "old" / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "old" / "pytorch_model.bin")
    checkpoint = Checkpoint(tmp_path / "old")
    assert all(torch.equal(checkpoint.tensor(name), tensors[name]) for name in tensors)


def break_weights(folder, keep=None, cut=None):
    file = folder / "model.safetensors"
    if cut:
        file.write_bytes(file.read_bytes()[:cut])
    else:
        tensors = load_file(file)
        save_file({name: tensor for name, tensor in tensors.items() if keep(name)}, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "there is no such checkpoint folder"),
        (lambda folder: (folder / "config.json").unlink(), "holds neither config.json nor adapter_config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json:1: is not valid JSON"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "internvl"}'), "model_type is 'internvl'"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"holds no weights"),
        (lambda folder: break_weights(folder, cut=5000), "is damaged or cut off"),
        (lambda folder: break_weights(folder, keep=lambda name: "mlp1" not in name), "lacks 6 of the model's"),
        (lambda folder: (folder / "tokenizer.json").unlink() or (folder / "tokenizer.model").unlink(),
         "holds neither tokenizer.json nor tokenizer.model"),
    ],
)  # fmt: skip
def test_a_broken_folder_is_named_with_what_is_wrong(tiny_base, tmp_path, damage, message):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_base, folder)
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_an_adapter_whose_base_is_gone_says_so(trained_adapter):
    file = trained_adapter / "adapter_config.json"
    file.write_text(file.read_text().replace(json.loads(file.read_text())["base_model_name_or_path"], "/no/where"))
    with pytest.raises(UserError, match="base_model_name_or_path: is '/no/where', which is not there"):
        load_model(trained_adapter)


@pytest.mark.parametrize("name", ["InternVL2-Tiny", "InternVL3_5-Tiny"])
def test_the_shipped_bases_carry_exactly_the_current_model_files(repository, name):
    from internvl.model.packaging import model_code_files

    shipped = repository / "pretrained" / name
    for file in model_code_files():
        assert (shipped / file.name).read_bytes() == file.read_bytes(), f"run tools/prepare_pretrained.py {shipped}"
