"""Whole finetunes through the launchers: what they write, how a batch is split, and how they fail."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from internvl.model.loading import load_model
from tests.conftest import free_port
from tests.end_to_end.launching import losses

EXACT = ["--lora_dropout", "0.0", "--seed", "3", "--save_strategy", "no", "--learning_rate", "1e-3"]


def test_lora_writes_the_promised_folder_and_learns(finetune, tiny_base):
    folder, process = finetune(
        "run", *EXACT, "--num_train_epochs", "4", "--save_strategy", "steps", "--save_steps", "6"
    )
    assert process.returncode == 0, process.stderr
    assert {path.name for path in folder.iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "config.json", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "generation_config.json", "preprocessor_config.json", "processor_config.json",
        "trainer_state.json", "training_args.json", "training_log.txt", "loss.png", "runs", "data_report.json",
        "checkpoint-12", "run.html",
    }  # fmt: skip
    curve = losses(folder)
    assert len(curve) == 12 and sum(curve[-3:]) < 0.9 * sum(curve[:3])
    assert all("lora_" in name for name in load_file(folder / "adapter_model.safetensors"))
    record = json.loads((folder / "training_args.json").read_text())
    assert record["ModelArguments"]["use_llm_lora"] == 128 and record["versions"]["transformers"]
    assert "steps |" in (folder / "training_log.txt").read_text()
    ids = torch.arange(40, 60)[None]
    before, after = (load_model(path).model(input_ids=ids).logits for path in (tiny_base, folder))
    assert not torch.allclose(before, after, atol=1e-3)


def test_a_batch_gives_the_same_losses_however_it_is_split(finetune):
    splits = {
        "8x1": {"PER_DEVICE_BATCH_SIZE": "8", "GPUS": "1"},
        "4x2": {"PER_DEVICE_BATCH_SIZE": "4", "GPUS": "1"},
        "2 processes x 2 x 2": {"PER_DEVICE_BATCH_SIZE": "2", "GPUS": "2"},
        "4 processes x 2": {"PER_DEVICE_BATCH_SIZE": "2", "GPUS": "4"},
    }
    curves = {}
    for name, settings in splits.items():
        folder, process = finetune(name.replace(" ", "_"), *EXACT, "--max_steps", "5", **settings)
        assert process.returncode == 0, process.stderr
        curves[name] = torch.tensor(losses(folder))
    for name, curve in curves.items():
        assert torch.allclose(curve, curves["8x1"], atol=1e-5, rtol=0), (name, curves)


def test_two_nodes_train_like_one(finetune):
    flags = [*EXACT, "--max_steps", "3"]
    one, process = finetune("one", *flags)
    assert process.returncode == 0, process.stderr
    node = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "PER_DEVICE_BATCH_SIZE": "2"}
    with ThreadPoolExecutor() as pool:
        nodes = [pool.submit(finetune, "two", *flags, **node, NODE_RANK=str(rank)) for rank in range(2)]
        ended = [done.result() for done in nodes]
    for _, process in ended:
        assert process.returncode == 0, process.stderr
    folder, _ = ended[0]
    assert "8 rows per step = 2 per device × 2 accumulation steps × 2 processes" in ended[0][1].stderr
    assert torch.allclose(torch.tensor(losses(folder)), torch.tensor(losses(one)), atol=1e-5, rtol=0)


def test_fsdp_on_a_cpu_is_refused_as_accelerate_would_not_divide_anything(finetune):
    _, process = finetune("fsdp", "--fsdp", "True", "--fsdp_config", "shell/fsdp/fsdp2_config.json", GPUS="2")
    assert process.returncode == 2 and "--fsdp: " in last_line(process) and "Traceback" not in process.stderr


def test_full_finetune_writes_a_model_that_loads_with_automodel(finetune):
    folder, process = finetune(
        "full", "--max_steps", "2", "--save_strategy", "no", script="shell/internvl2.0/habitat_2b_finetune/full.sh"
    )
    assert process.returncode == 0, process.stderr
    assert not (folder / "adapter_config.json").exists()
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    ids = torch.arange(40, 60)[None]
    assert torch.equal(model(input_ids=ids).logits, load_model(folder).model(input_ids=ids).logits)


def test_the_same_command_continues_from_the_last_checkpoint(finetune):
    whole, process = finetune("whole", *EXACT, "--max_steps", "6")
    assert process.returncode == 0, process.stderr
    flags = [*EXACT, "--save_strategy", "steps", "--save_steps", "3", "--max_steps", "6"]
    folder, process = finetune("resumed", *flags)
    assert process.returncode == 0, process.stderr
    shutil.rmtree(folder / "checkpoint-6", ignore_errors=True)
    # The run as a crash after step 3 leaves it.
    folder, process = finetune("crashed", *flags, "--save_total_limit", "2")
    shutil.rmtree(folder / "checkpoint-6")
    for name in ("adapter_model.safetensors", "trainer_state.json"):
        (folder / name).unlink()
    folder, process = finetune("crashed", *flags, "--save_total_limit", "2")
    assert process.returncode == 0, process.stderr
    assert "Continuing from" in process.stderr
    assert losses(folder) == losses(whole)


def test_a_run_is_repeated_from_its_folder_and_without_torchrun(finetune):
    """CONFIG names the arguments of a run; DEBUG leaves out torchrun, workers and the log."""
    first, process = finetune("first", *EXACT, "--max_steps", "2", "--learning_rate", "7e-4", "--seed", "5")
    assert process.returncode == 0, process.stderr
    again, process = finetune("again", CONFIG=str(first / "training_args.json"), MODEL="", META_PATH="")
    assert process.returncode == 0, process.stderr
    assert losses(again) == losses(first)
    flags = dict(zip(EXACT[::2], EXACT[1::2], strict=True)) | {"--learning_rate": "7e-4", "--seed": "5"}
    lines = [f"{name.removeprefix('--')}: {value}" for name, value in flags.items()]
    (first / "run.yaml").write_text("\n".join([*lines, "max_steps: 1"]))
    plain, process = finetune("plain", "--max_steps", "2", CONFIG=str(first / "run.yaml"), DEBUG="1")
    assert process.returncode == 0, process.stderr
    assert losses(plain) == losses(first)
    assert "torchrun" not in process.stdout and "internvl_chat_finetune.py" in process.stdout


@pytest.mark.parametrize(
    "stage", ["1", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("2", "3", "2_offload", "3_offload"))]
)
def test_zero_trains_with_two_processes_and_saves_only_the_adapter(finetune, repository, stage):
    config = repository / "shell" / "deepspeed" / f"zero_stage{stage}_config.json"
    folder, process = finetune(
        "zero", *EXACT, "--max_steps", "3", "--save_strategy", "steps", "--save_steps", "3",
        GPUS="2", PER_DEVICE_BATCH_SIZE="2", DEEPSPEED=str(config),
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    plain, process = finetune("plain", *EXACT, "--max_steps", "3", GPUS="2", PER_DEVICE_BATCH_SIZE="2")
    assert torch.allclose(torch.tensor(losses(folder)), torch.tensor(losses(plain)), atol=1e-4)
    zero, ddp = (load_file(run / "adapter_model.safetensors") for run in (folder, plain))
    assert zero.keys() == ddp.keys()
    assert all(torch.allclose(zero[name], ddp[name], atol=1e-4) for name in zero)
    states = next((folder / "checkpoint-3").rglob("*model_states.pt"))
    module = torch.load(states, weights_only=True)["module"]
    assert module and all("lora_" in name for name in module)


def last_line(process) -> str:
    return process.stderr.strip().splitlines()[-1]


def test_a_missing_image_ends_with_status_2_and_its_line(finetune, rows_folder, tmp_path):
    shutil.copytree(rows_folder, tmp_path / "rows")
    (tmp_path / "rows" / "images" / "image_000001.png").unlink()
    meta = {"rows": {"root": str(tmp_path / "rows"), "annotation": str(tmp_path / "rows" / "train.jsonl")}}
    (tmp_path / "rows" / "meta.json").write_text(json.dumps(meta))
    _, process = finetune("run", META_PATH=str(tmp_path / "rows" / "meta.json"))
    assert process.returncode == 2
    assert "Traceback" not in process.stderr
    assert "train.jsonl:2: " in process.stderr and "there is no such image" in process.stderr


def test_only_one_process_says_what_is_wrong(finetune):
    _, process = finetune("run", "--ps_version", "v1", GPUS="2", PER_DEVICE_BATCH_SIZE="2")
    assert process.returncode == 2
    assert process.stderr.count("--ps_version: is 'v1'") == 1
    assert "Traceback" not in process.stderr


def test_a_run_that_fails_makes_the_launcher_fail(finetune):
    # A mistake that no message foresees: status 1, with the traceback.
    _, process = finetune("run", "--max_steps", "1", "--lr_scheduler_kwargs", '{"nosuch": 1}')
    assert process.returncode == 1
    assert "Traceback" in process.stderr


def test_a_file_where_a_folder_should_go_is_named(finetune, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "runs").write_text("in the way")
    _, process = finetune("run", "--max_steps", "1")
    assert process.returncode == 2
    assert "/runs/" in process.stderr and "Check the path" in process.stderr
    assert "Traceback" not in process.stderr
