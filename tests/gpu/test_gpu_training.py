"""Training on the device: the CPU's loss and gradients in every way, half precision, faults, 4 bits."""

import json

import pytest
import torch
from safetensors.torch import load_file

from internvl.commands import merge_lora
from internvl.errors import UserError
from internvl.model.checkpoint import Checkpoint
from internvl.train import internvl_chat_finetune
from internvl.train.trainer import FinetuneTrainer
from tests.train.one_step import WAYS, Way, assert_equal, step

LORA = ["--freeze_llm", "True", "--freeze_mlp", "True", "--freeze_backbone", "True", "--use_llm_lora", "4"]


@pytest.fixture
def finetune(tiny_base, rows_folder, tmp_path, device):
    """``finetune("name", flag, …)`` trains in this process and returns the losses of the steps."""

    def run(name: str, *flags: str) -> list[float]:
        given = ["--model_name_or_path", tiny_base, "--meta_path", rows_folder / "meta.json"]
        given += ["--output_dir", tmp_path / name, *LORA, "--max_steps", 4, "--learning_rate", "1e-3"]
        given += ["--per_device_train_batch_size", 4, "--logging_steps", 1, "--report_to", "none"]
        given += ["--dataloader_num_workers", 0, "--use_cpu", device == "cpu", *flags]
        internvl_chat_finetune.main([str(part) for part in given])
        history = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        return [entry["loss"] for entry in history if "loss" in entry]

    return run


@pytest.mark.parametrize("member", ["internlm2", "qwen3"])
@pytest.mark.parametrize("name", WAYS)
def test_loss_and_gradients_are_those_of_plain_rows_on_the_cpu(name, member, device, model_and_data):
    plain = step(*model_and_data(member=member), Way())
    model, tokenizer, data = model_and_data(member=member)
    loss, gradients, tokens = step(model.to(device), tokenizer, data, WAYS[name])
    assert_equal((loss, {name: gradient.cpu() for name, gradient in gradients.items()}, tokens), plain)


def test_half_precision_is_near_full(device, half, finetune):
    precision = {torch.bfloat16: ["--bf16", "True"], torch.float32: []}[half]
    assert finetune("half", *precision) == pytest.approx(finetune("full"), rel=2e-2)


def test_a_loss_that_is_no_number_stops_or_is_left_out(device, finetune, monkeypatch, tmp_path):
    """On a GPU in fp16, whose scaler has to leave the step out, too."""
    flags = ["--fp16", "True"] if device == "cuda" else []
    compute = FinetuneTrainer.compute_loss

    def spoiled(self, *args, **kwargs):
        loss = compute(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 1 else loss

    monkeypatch.setattr(FinetuneTrainer, "compute_loss", spoiled)
    with pytest.raises((UserError, SystemExit)):
        finetune("stopped", *flags)
    finetune("skipped", "--on_nan", "skip", *flags)
    report = json.loads((tmp_path / "skipped" / "data_report.json").read_text())
    assert report["skipped_steps"] == [2]
    assert all(
        tensor.isfinite().all() for tensor in load_file(tmp_path / "skipped/adapter_model.safetensors").values()
    )


def test_kept_features_give_the_losses_of_computed_ones(device, finetune, tmp_path):
    cache = ["--vision_cache", str(tmp_path / "features")]
    assert finetune("first", *cache) == pytest.approx(finetune("second", *cache), rel=1e-5)


def test_a_base_in_four_bits_trains_goes_on_and_merges(device, half, finetune, tmp_path, tiny_base):
    pytest.importorskip("bitsandbytes")
    flags = ["--load_in_4bit", "True", *(["--bf16", "True"] if half == torch.bfloat16 else [])]
    saving = ["--save_strategy", "steps", "--save_steps", "2"]
    whole = finetune("four", *flags, *saving)
    assert all(loss == loss for loss in whole) and whole[-1] < whole[0]
    (tmp_path / "cut").mkdir()
    for name in ("checkpoint-2", "training_args.json"):
        (tmp_path / "four" / name).rename(tmp_path / "cut" / name)
    assert finetune("cut", *flags, *saving)[2:] == pytest.approx(whole[2:], rel=1e-5)
    merge_lora.main([str(tmp_path / "cut"), str(tmp_path / "merged"), "--skip-self-check"])
    merged, base = Checkpoint(tmp_path / "merged"), Checkpoint(tiny_base)
    changed = [name for name in base.tensors if not torch.equal(merged.tensor(name), base.tensor(name))]
    assert changed and all(".layers." in name for name in changed)
