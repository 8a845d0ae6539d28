"""Adapters of any PEFT origin, merged and loaded, against PEFT's own merge and forward pass."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import InternVLForConditionalGeneration

from internvl.commands.convert_to_hf import main as convert_to_hf_main
from internvl.errors import UserError
from internvl.json_files import write_json
from internvl.model.checkpoint import Checkpoint
from internvl.model.hf_conversion import convert_to_hf
from internvl.model.hf_names import hf_names, join
from internvl.model.loading import load_model
from internvl.model.merging import merge_checkpoint
from tests.model.random_adapters import LANGUAGE, VISION, random_settings, rewrite, save, wrap

NUM_RANDOM = 36
NUM_RANDOM_HF = 4
EPS = torch.finfo(torch.float32).eps
PLAIN = {"r": 4, "lora_alpha": 12, "target_modules": LANGUAGE, "rank_pattern": {"wo": 2}, "alpha_pattern": {"w2": 5}}
HF_TARGETS = {
    "language": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "two of three": ["q_proj", "v_proj"],
    "all-linear": "all-linear",
    "embeddings": ["embed_tokens", "lm_head", "k_proj"],
    "vision": r"model\.vision_tower\..*\.([qkv]_proj|projection_layer|fc1)",
}


@pytest.fixture
def base_model(tiny_base):
    return lambda: load_model(tiny_base).model


@pytest.fixture(scope="module")
def hf_base(tiny_base, tmp_path_factory) -> Path:
    """The tiny base in transformers' layout."""
    folder = tmp_path_factory.mktemp("hf") / "base"
    convert_to_hf(Checkpoint(tiny_base), folder)
    return folder


def given_inputs(model) -> dict[str, torch.Tensor]:
    """An image and a text."""
    ids = torch.arange(40, 70)[None]
    ids[0, 3 : 3 + model.num_image_token] = model.img_context_token_id
    return {"pixel_values": torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(1)), "input_ids": ids}


def assert_answers_and_merges_like(adapter: Checkpoint, theirs: nn.Module, peft: PeftModel, out: Path) -> float:
    """Compare the loaded and the merged adapter with PEFT's model, of which ``peft`` wraps a part.

    Returns the largest error of a merged weight, relative to the largest number of its tensor.
    """
    model = load_model(adapter).model
    inputs = given_inputs(model)
    theirs.img_context_token_id = model.img_context_token_id
    with torch.no_grad():
        expected = theirs(**inputs).logits
        assert (model(**inputs).logits - expected).abs().max() <= 2e-5 * expected.abs().max()
    merge_checkpoint(adapter, out)
    merged = load_file(out / "model.safetensors")
    peft.merge_and_unload()
    state, relative = theirs.state_dict(), {}
    for name, weight in merged.items():
        parts = hf_names(name) if isinstance(theirs, InternVLForConditionalGeneration) else (name,)
        wanted = join(name, [state[part] for part in parts], model.config)
        # Bit for bit; but PEFT multiplies the matrices of a convolution with another kernel.
        tolerance = 4 * EPS if "patch_embedding" in name else 0
        relative[name] = float((weight - wanted).abs().max() / wanted.abs().max().clamp(min=EPS))
        assert relative[name] <= tolerance, name
    with torch.no_grad():
        assert (load_model(out).model(**inputs).logits - expected).abs().max() <= 1e-4 * expected.abs().max()
    return max(relative.values())


def reloaded(model: nn.Module, folder: Path) -> PeftModel:
    """PEFT's reading of a saved adapter: it sorts the patterns when it saves, and the first that fits counts."""
    return PeftModel.from_pretrained(model, folder).eval()


@pytest.mark.filterwarnings("ignore")  # PEFT's, about the shapes of biases and layers that share weights
@pytest.mark.parametrize("seed", range(NUM_RANDOM))
def test_a_random_adapter_merges_bit_for_bit_and_answers_as_in_peft(
    seed, base_model, tiny_base, tmp_path, record_property
):
    folder = save(wrap(base_model(), random_settings(seed), seed), tmp_path / "adapter", tiny_base)
    theirs = base_model()
    error = assert_answers_and_merges_like(Checkpoint(folder), theirs, reloaded(theirs, folder), tmp_path / "merged")
    record_property("largest relative error", error)


@pytest.mark.parametrize("seed", range(NUM_RANDOM_HF))
@pytest.mark.parametrize("targets", HF_TARGETS.values(), ids=HF_TARGETS)
def test_an_adapter_of_the_hf_copy_merges_and_answers_as_there(seed, targets, hf_base, tiny_base, tmp_path):
    rng = torch.Generator().manual_seed(seed)
    ranks = torch.randint(1, 9, (4,), generator=rng).tolist()
    bias = targets == HF_TARGETS["vision"] and seed % 3 == 0
    settings = {
        "r": ranks[0], "lora_alpha": 6, "target_modules": targets, "rank_pattern": {"k_proj": ranks[1]},
        "alpha_pattern": {"v_proj": ranks[2], r".*layers\.1\..*": ranks[3]}, "use_rslora": seed % 2 == 0,
        "use_dora": seed % 4 == 1, "lora_bias": bias,
        "modules_to_save": ["model.language_model.norm", "layers.1.self_attn.v_proj"] if seed == 3 else None,
    }  # fmt: skip
    hf_model = InternVLForConditionalGeneration.from_pretrained(hf_base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, as above
        folder = save(wrap(hf_model, settings, seed), tmp_path / "adapter", hf_base)
        theirs = InternVLForConditionalGeneration.from_pretrained(hf_base)
        peft = reloaded(theirs, folder)
    base = tiny_base if seed % 2 else None  # its own, or the one it was converted from
    assert_answers_and_merges_like(Checkpoint(folder, base=base), theirs, peft, tmp_path / "merged")


PARTS = {
    "language_model": ("language_model", LANGUAGE),
    "language_model.model": ("language_model.model", LANGUAGE),
    "vision_model": ("vision_model", VISION),
}


@pytest.mark.parametrize(("part", "targets"), PARTS.values(), ids=PARTS)
def test_an_adapter_saved_from_a_part_of_the_model_finds_its_place(part, targets, base_model, tiny_base, tmp_path):
    settings = PLAIN | {"target_modules": targets, "rank_pattern": {r".*layers\.1\..*": 7}}
    folder = save(wrap(base_model().get_submodule(part), settings), tmp_path / "adapter", tiny_base)
    theirs = base_model()
    peft = reloaded(theirs.get_submodule(part), folder)
    assert_answers_and_merges_like(Checkpoint(folder), theirs, peft, tmp_path / "merged")


@pytest.mark.parametrize(
    ("part", "settings"),
    [("model", PLAIN | {"target_modules": ["q_proj", "fc2"]}),
     ("model.language_model", PLAIN | {"target_modules": ["k_proj"]}),
     ("model.vision_tower", PLAIN | {"target_modules": ["v_proj", "fc1"], "use_dora": True})],
    ids=["model", "language model", "vision tower"],
)  # fmt: skip
def test_an_adapter_saved_from_a_part_of_the_hf_copy_finds_its_place(part, settings, hf_base, tmp_path):
    hf_model = InternVLForConditionalGeneration.from_pretrained(hf_base)
    folder = save(wrap(hf_model.get_submodule(part), settings), tmp_path / "adapter", hf_base)
    theirs = InternVLForConditionalGeneration.from_pretrained(hf_base)
    peft = reloaded(theirs.get_submodule(part), folder)
    assert_answers_and_merges_like(Checkpoint(folder), theirs, peft, tmp_path / "merged")


def halves_apart(name: str) -> str:
    """The name in a state dict of the original trainer, which wraps each half of the model."""
    name = name.removeprefix("base_model.model.").replace("language_model.", "language_model.base_model.model.", 1)
    return name.replace(".weight", ".default.weight") if ".lora_" in name else name


def to_bin(folder: Path) -> None:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


SPELLINGS = {
    "state dict names": lambda folder: rewrite(folder, lambda name: name.replace(".weight", ".default.weight")
                                               if "lora_" in name else name + ".default" * name.endswith("vector")),
    "another adapter's name": lambda folder: rewrite(folder, lambda name: name.replace("lora_A.", "lora_A.mine.")
                                                     .replace("lora_B.", "lora_B.mine.")),
    "without PEFT's prefix": lambda folder: rewrite(folder, lambda name: name.removeprefix("base_model.model.")),
    "halves wrapped apart": lambda folder: rewrite(folder, halves_apart),
    "adapter_model.bin": to_bin,
    "peft_type in lower case": lambda folder: rewrite(folder, peft_type="lora"),
}  # fmt: skip


@pytest.mark.parametrize("respell", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("dora", [False, True])
def test_other_spellings_of_the_same_adapter_are_read(respell, dora, base_model, tiny_base, tmp_path):
    settings = PLAIN | {"use_dora": dora, "modules_to_save": ["mlp1"]}
    folder = save(wrap(base_model(), settings), tmp_path / "adapter", tiny_base)
    theirs = base_model()
    peft = reloaded(theirs, folder)
    respell(folder)
    assert_answers_and_merges_like(Checkpoint(folder), theirs, peft, tmp_path / "merged")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_adapter_in_half_precision_is_merged_in_float32(dtype, base_model, tiny_base, tmp_path):
    folder = save(wrap(base_model(), PLAIN), tmp_path / "adapter", tiny_base)
    rewrite(folder, change=lambda name, tensor: tensor.to(dtype))
    theirs = base_model()
    assert_answers_and_merges_like(Checkpoint(folder), theirs, reloaded(theirs, folder), tmp_path / "merged")


def test_patterns_that_fit_one_layer_with_two_alphas_are_named(base_model, tiny_base, tmp_path, caplog):
    settings = PLAIN | {"alpha_pattern": {"wo": 1, "attention.wo": 9}}
    folder = save(wrap(base_model(), settings), tmp_path / "adapter", tiny_base)
    merge_checkpoint(Checkpoint(folder), tmp_path / "merged")
    assert "several patterns fit language_model.model.layers.0.attention.wo, with alpha 9 and 1" in caplog.text


def test_lora_beside_a_base_in_half_precision_stays_in_float32(base_model, tiny_base, tmp_path):
    folder = save(wrap(base_model(), PLAIN), tmp_path / "adapter", tiny_base)
    model = load_model(folder, dtype=torch.bfloat16).model
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if "lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "lora_" not in name} == {torch.bfloat16}


def test_a_whole_model_in_the_hf_layout_is_turned_back_as_the_message_says(hf_base, tiny_base, tmp_path):
    with pytest.raises(UserError, match=rf"published layout: python tools/convert_to_hf.py --back {hf_base} OUT$"):
        load_model(hf_base)
    convert_to_hf_main(["--back", str(hf_base), str(tmp_path / "out")])
    back, base = load_model(tmp_path / "out").model, load_model(tiny_base).model
    assert all(torch.equal(one, two) for one, two in zip(back.parameters(), base.parameters(), strict=True))


def test_an_hf_base_of_unknown_origin_is_replaced_by_the_published_one(hf_base, tiny_base, tmp_path):
    theirs = tmp_path / "theirs"
    shutil.copytree(hf_base, theirs)
    config = {key: value for key, value in Checkpoint(theirs).config.items() if key != "internvl_chat"}
    write_json(theirs / "config.json", config)
    hf_model = InternVLForConditionalGeneration.from_pretrained(theirs)
    folder = save(wrap(hf_model, PLAIN | {"target_modules": ["q_proj"]}), tmp_path / "adapter", theirs)
    with pytest.raises(UserError, match="has no entry 'internvl_chat'"):
        load_model(folder)
    reloaded_model = InternVLForConditionalGeneration.from_pretrained(theirs)
    peft = reloaded(reloaded_model, folder)
    assert_answers_and_merges_like(Checkpoint(folder, base=tiny_base), reloaded_model, peft, tmp_path / "merged")
