"""What a finetune starts from: sizes, precision, and flags that contradict the checkpoint."""

import pytest
import torch
from safetensors.torch import load_file

from internvl.errors import UserError
from internvl.model.adapter import stored_name
from internvl.train import setup
from internvl.train.arguments import parse_arguments
from internvl.train.setup import load_for_training


def load(tiny_base, tmp_path, *flags):
    groups = parse_arguments(
        [
            "--model_name_or_path",
            str(tiny_base),
            "--meta_path",
            "m",
            "--output_dir",
            str(tmp_path),
            "--use_cpu",
            "True",
        ]
        + list(flags)
    )
    return load_for_training(*groups).model


def test_auto_image_size_is_the_checkpoints_own_when_smaller(tiny_base, tmp_path):
    model = load(tiny_base, tmp_path)
    assert model.config.force_image_size == 56 and model.num_image_token == 4


def test_another_image_size_resizes_the_positions(tiny_base, tmp_path):
    model = load(tiny_base, tmp_path, "--force_image_size", "84")
    assert model.num_image_token == 9
    assert model.extract_feature(torch.randn(1, 3, 84, 84)).shape == (1, 9, 64)


def test_the_tiles_of_the_training_are_in_the_config_that_is_saved(tiny_base, tmp_path):
    tiling = ["--max_dynamic_patch", "5", "--min_dynamic_patch", "2", "--use_thumbnail", "False"]
    config = load(tiny_base, tmp_path, *tiling).config
    assert (config.max_dynamic_patch, config.min_dynamic_patch, config.use_thumbnail) == (5, 2, False)


def test_half_precision_keeps_frozen_weights_half_and_trained_ones_full(tiny_base, tmp_path):
    model = load(tiny_base, tmp_path, "--bf16", "True", "--freeze_llm", "True", "--use_llm_lora", "4")
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ps_version", "v1"], "--ps_version: is 'v1', but .* was trained with 'v2'"),
        (["--vision_select_layer", "-2"], "--vision_select_layer: is -2"),
        (["--conv_style", "Hermes-2"], "--conv_style: is 'Hermes-2', but .* 'internlm2-chat'"),
        (["--down_sample_ratio", "0.25"], "--down_sample_ratio: is 0.25"),
        (["--force_image_size", "60"], "--force_image_size: is 60, not a multiple of 28 px"),
        (["--freeze_backbone", "True", "--unfreeze_vit_layers", "-9"], "--unfreeze_vit_layers: is -9"),
    ],
)
def test_flags_that_contradict_the_checkpoint_are_refused(tiny_base, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        load(tiny_base, tmp_path, *flags)


def test_an_adapter_trains_on_with_its_own_settings(trained_adapter, tmp_path):
    """Of rank 8 on the language model and 4 on the vision encoder, with the projector."""
    own = ("--freeze_llm", "True", "--freeze_backbone", "True", "--use_llm_lora", "8", "--use_backbone_lora", "4")
    state = load(trained_adapter, tmp_path, *own).state_dict()
    saved = load_file(trained_adapter / "adapter_model.safetensors")
    names = {stored_name(name): name for name in state}
    assert all(torch.equal(state[names[name]], tensor) for name, tensor in saved.items())
    for flags, words in (
        ((), "is an adapter of rank 8, and no LoRA is asked for"),
        ((*own[:4], "--use_llm_lora", "16", *own[6:]), "is an adapter with r 8, and the flags ask for 16"),
        ((*own, "--freeze_mlp", "True"), "holds .*mlp1.*, which the flags freeze"),
    ):
        with pytest.raises(UserError, match=words):
            load(trained_adapter, tmp_path, *flags)


def test_four_bits_without_bitsandbytes_are_refused_with_the_package(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(UserError, match="--load_in_4bit: needs the package bitsandbytes. Run: pip install"):
        load(tiny_base, tmp_path, "--load_in_4bit", "True", "--freeze_llm", "True", "--use_llm_lora", "4")


@pytest.mark.parametrize("llm", ["internlm2", "qwen3"])
def test_four_bits_hold_the_language_models_blocks_and_nothing_else(tiny_member, tmp_path, llm):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    flags = ("--freeze_llm", "True", "--freeze_backbone", "True", "--freeze_mlp", "True", "--use_llm_lora", "4")
    model = load(tiny_member(llm), tmp_path, "--load_in_4bit", "True", *flags)
    small = {name for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}
    assert small and all(".layers." in name and "language_model" in name for name in small)
    linear = {
        name
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear and ".layers." in name and "language_model" in name and "lora_" not in name
    }
    assert not linear
