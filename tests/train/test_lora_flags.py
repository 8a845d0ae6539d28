"""The flags that make LoRA another than the original's: what they train, write, merge, continue, and refuse."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from internvl.model.checkpoint import Checkpoint
from internvl.model.internvl_chat.modeling_internvl_chat import BACKBONE_LORA_TARGETS
from internvl.model.loading import load_model
from internvl.model.merging import merge_checkpoint
from internvl.train.internvl_chat_finetune import main as finetune
from tests.end_to_end.launching import losses

FROZEN = ["--freeze_llm", "True", "--freeze_mlp", "True", "--freeze_backbone", "True"]
TRAINING = [
    *FROZEN, "--use_llm_lora", "4", "--lora_dropout", "0.1", "--max_steps", "2", "--save_strategy", "steps",
    "--save_steps", "1", "--learning_rate", "1e-2", "--warmup_ratio", "0", "--per_device_train_batch_size", "4",
    "--use_cpu", "True", "--report_to", "none", "--dataloader_num_workers", "0", "--seed", "3",
]  # fmt: skip
INTERNLM2 = ["attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
QWEN3 = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Member → the flags of a training, and the settings that PEFT's own model of the same LoRA is made with.
CASES = {
    "rsLoRA of one alpha in both parts": (
        "internlm2",
        ["--lora_alpha", "5", "--use_rslora", "True", "--use_backbone_lora", "2"],
        {
            "lora_alpha": 5, "use_rslora": True, "target_modules": [*INTERNLM2, *BACKBONE_LORA_TARGETS],
            "rank_pattern": dict.fromkeys(BACKBONE_LORA_TARGETS, 2),
        },
    ),
    "DoRA on two layers, recomputed": (
        "internlm2",
        ["--use_dora", "True", "--lora_target_modules", "wo,feed_forward.w2", "--grad_checkpoint", "True"],
        {"use_dora": True, "target_modules": ["attention.wo", "feed_forward.w2"]},
    ),
    "DoRA, rsLoRA and alpha on two layers": (
        "qwen3",
        ["--use_dora", "True", "--use_rslora", "True", "--lora_alpha", "3", "--lora_target_modules",
         "q_proj,down_proj"],
        {
            "use_dora": True, "use_rslora": True, "lora_alpha": 3,
            "target_modules": ["self_attn.q_proj", "mlp.down_proj"],
        },
    ),
    "DoRA in both parts, all linear layers": (
        "qwen3",
        ["--use_dora", "True", "--lora_target_modules", "all-linear", "--use_backbone_lora", "2"],
        {
            "use_dora": True, "rank_pattern": dict.fromkeys(BACKBONE_LORA_TARGETS, 2),
            "alpha_pattern": dict.fromkeys(BACKBONE_LORA_TARGETS, 4),
            "target_modules": [
                *(f"self_attn.{name}" for name in QWEN3[:4]), *(f"mlp.{name}" for name in QWEN3[4:]),
                *BACKBONE_LORA_TARGETS,
            ],
        },
    ),
}  # fmt: skip
# PEFT's names of the base and of its class; both record them, each in its own way.
OF_THE_BASE = ("base_model_name_or_path", "auto_mapping")


@pytest.fixture(scope="module", params=CASES)
def trained(request, tiny_member, rows_folder, tmp_path_factory):
    """A training of two steps by command: (its folder, its base, its command line, settings for PEFT)."""
    llm, flags, settings = CASES[request.param]
    folder, base = tmp_path_factory.mktemp("run") / "run", tiny_member(llm)
    argv = ["--model_name_or_path", str(base), "--meta_path", str(rows_folder / "meta.json"), *TRAINING, *flags]
    finetune([*argv, "--output_dir", str(folder)])
    return folder, base, argv, {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, **settings}


def read_config(folder: Path) -> dict:
    content = json.loads((folder / "adapter_config.json").read_text())
    content["target_modules"] = sorted(content["target_modules"])
    return {name: value for name, value in content.items() if name not in OF_THE_BASE}


def test_the_adapter_is_what_peft_itself_would_save(trained, tmp_path):
    folder, base, _, settings = trained
    theirs = get_peft_model(load_model(base).model, LoraConfig(**settings))
    theirs.save_pretrained(tmp_path)
    assert read_config(folder) == read_config(tmp_path)
    ours, expected = (load_file(path / "adapter_model.safetensors") for path in (folder, tmp_path))
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    kinds = {next(part for part in name.split(".") if part.startswith("lora_")) for name in ours}
    for kind in kinds:  # each of them trained: B begins as zeros, the magnitude as the length of the rows
        assert any(not torch.equal(ours[name], expected[name]) for name in ours if f".{kind}" in name), kind
    assert ("lora_magnitude_vector" in kinds) is settings.get("use_dora", False)


def test_it_merges_and_computes_as_peft_does(trained, tmp_path):
    folder, base, _, _ = trained
    ids = torch.arange(20, 40)[None]
    theirs = PeftModel.from_pretrained(load_model(base).model, folder).eval()
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits
        assert torch.allclose(load_model(folder).model(input_ids=ids).logits, expected, atol=1e-6)
        assert not torch.allclose(load_model(base).model(input_ids=ids).logits, expected, atol=1e-3)
    merge_checkpoint(Checkpoint(folder), tmp_path / "merged")
    ours, whole = load_file(tmp_path / "merged" / "model.safetensors"), theirs.merge_and_unload().state_dict()
    assert ours.keys() == whole.keys()
    for name, tensor in ours.items():
        assert torch.allclose(tensor, whole[name], atol=1e-6), name
    with torch.no_grad():
        assert torch.allclose(load_model(tmp_path / "merged").model(input_ids=ids).logits, expected, atol=1e-5)


def test_a_run_that_was_cut_off_continues_to_the_same_bits(trained, tmp_path):
    folder, _, argv, _ = trained
    again, manifest = tmp_path / "run", Path("checkpoint-1") / "complete.json"
    shutil.copytree(folder / "checkpoint-1", again / "checkpoint-1")
    shutil.copy(folder / "training_args.json", again)
    finetune([*argv, "--output_dir", str(again)])
    assert (again / manifest).stat().st_mtime_ns == (folder / manifest).stat().st_mtime_ns, "it began anew"
    ours, whole = (load_file(path / "adapter_model.safetensors") for path in (again, folder))
    assert ours.keys() == whole.keys() and all(torch.equal(ours[name], whole[name]) for name in whole)
    assert losses(again) == losses(folder)


@pytest.mark.parametrize("trained", ["DoRA on two layers, recomputed"], indirect=True)
@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--lora_alpha", "7"], "--lora_alpha: None then, 7 now"),
        (["--use_rslora", "True"], "--use_rslora: False then, True now"),
        (["--lora_target_modules", "wo"], "--lora_target_modules: 'wo,feed_forward.w2' then, 'wo' now"),
    ],
)
def test_another_lora_does_not_continue_a_run(trained, flags, line, capsys):
    folder, _, argv, _ = trained
    with pytest.raises(SystemExit) as ended:
        finetune([*argv, "--output_dir", str(folder), *flags])
    message = capsys.readouterr().err
    assert ended.value.code == 2 and line in message and "of another command" in message
