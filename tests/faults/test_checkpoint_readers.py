"""Checkpoint folders, tokenizers and adapters with one file damaged; see test_readers.py."""

import pickle
from pathlib import Path

import torch
from hypothesis import strategies as st

from internvl.commands import convert_to_hf, merge_lora, prepare_pretrained
from internvl.model.checkpoint import Checkpoint
from internvl.model.loading import load_checkpoint_tokenizer, load_config, load_model
from tests.faults.corpus import (
    damaged_file,
    damaged_json,
    damaged_safetensors,
    one_of_files,
)
from tests.faults.harness import fuzz


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
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(("a", "b", "c"), "model.safetensors")}

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
