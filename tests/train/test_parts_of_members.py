"""Whatever trains of a member with Qwen: saved, continued to the same bits, merged, answering alike."""

import shutil

import pytest
from safetensors.torch import load_file

from internvl.commands import merge_lora
from internvl.inference.engine import Engine
from internvl.inference.requests import Request
from internvl.model.checkpoint import Checkpoint
from internvl.train import internvl_chat_finetune
from tests.conftest import make_image

FROZEN = ["--freeze_llm", "True", "--freeze_backbone", "True", "--freeze_mlp", "True"]
# What trains → its flags, and the beginnings of the names that may differ from the base.
PARTS = {
    "LoRA on both": ([*FROZEN, "--use_llm_lora", "4", "--use_backbone_lora", "2"], ("language_model", "vision_model")),
    "projector": (FROZEN[:4], ("mlp1",)),
    "projector beside LoRA": ([*FROZEN[:4], "--use_llm_lora", "4"], ("language_model", "mlp1")),
    "last vision layer": ([*FROZEN, "--unfreeze_vit_layers", "-1"], ("vision_model.encoder.layers.2.",)),
    "output layer beside LoRA": ([*FROZEN, "--use_llm_lora", "4", "--unfreeze_lm_head", "True"], ("language_model",)),
    "DoRA": ([*FROZEN, "--use_llm_lora", "4", "--use_dora", "True"], ("language_model",)),
    "rsLoRA on two layers": (
        [*FROZEN, "--use_llm_lora", "4", "--use_rslora", "True", "--lora_target_modules", "q_proj,v_proj"],
        ("language_model",),
    ),
    "everything": ([], ("language_model", "vision_model", "mlp1")),
}


def answer(folder) -> str:
    engine = Engine.load(folder, precision="fp32", device="cpu", max_tiles=3)
    request = Request([engine.read(make_image(120, 60, 2))], "Describe it.")
    return engine.answer([request], max_new_tokens=10, do_sample=False)[0]


@pytest.mark.slow
@pytest.mark.parametrize("member", ["qwen2", "qwen3"])
@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_trained_saved_continued_merged_and_scored(part, member, tiny_member, rows_folder, tmp_path):
    flags, changed = PARTS[part]
    base = tiny_member(member)

    def train(name: str) -> dict:
        given = ["--model_name_or_path", base, "--meta_path", rows_folder / "meta.json", "--use_cpu", True]
        given += ["--output_dir", tmp_path / name, "--max_steps", 4, "--learning_rate", "1e-3", "--report_to", "none"]
        given += ["--per_device_train_batch_size", 4, "--dataloader_num_workers", 0, "--save_steps", 2, *flags]
        internvl_chat_finetune.main([str(word) for word in given])
        weights = list((tmp_path / name).glob("*.safetensors"))
        return {key: tensor for file in weights for key, tensor in load_file(file).items()}

    whole = train("whole")
    (tmp_path / "cut").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    shutil.copyfile(tmp_path / "whole" / "training_args.json", tmp_path / "cut" / "training_args.json")
    cut = train("cut")
    assert cut.keys() == whole.keys() and all(cut[name].equal(whole[name]) for name in whole)
    result = tmp_path / "whole"
    if Checkpoint(result).is_adapter:
        merge_lora.main([str(result), str(tmp_path / "merged"), "--skip-self-check"])
        assert answer(tmp_path / "merged") == answer(result)
        result = tmp_path / "merged"
    mine, theirs = Checkpoint(result), Checkpoint(base)
    moved = {name for name in theirs.tensors if not mine.tensor(name).equal(theirs.tensor(name))}
    assert moved and all(name.startswith(changed) for name in moved)
    assert all(any(name.startswith(start) for name in moved) for start in changed)
    assert isinstance(answer(result), str)
