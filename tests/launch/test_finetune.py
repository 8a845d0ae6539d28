"""The plan of a finetune: what the device decides, and which flags the finetune script gets."""

import pytest

from internvl.errors import UserError
from internvl.launch import finetune
from internvl.launch.command import CPU, Device
from internvl.launch.finetune import Plan, choose_precision, make_plan
from internvl.launch.flags import Paths
from internvl.launch.settings import read_settings
from tests.launch.test_settings import CALL

BF16, FP16 = Device("cuda", "bf16", 2), Device("cuda", "fp16", 2)
ZERO_1 = "shell/deepspeed/zero_stage1_config.json"


def plan(device: Device, *typed: str, **environment: str) -> Plan:
    return make_plan(read_settings(CALL, typed, {"BATCH_SIZE": "16", **environment}, Paths()), device)


def flags(device: Device, *typed: str, **environment: str) -> dict[str, str]:
    """The flags of the finetune script. No flag may come twice."""
    command = plan(device, *typed, **environment).command
    words = command[command.index("finetune.py") + 1 :]
    assert len(set(words[::2])) == len(words[::2]), words
    return dict(zip(words[::2], words[1::2], strict=True))


def test_the_launchers_flags_and_the_users():
    got = flags(BF16, "--lora_dropout", "0.0", "--seed", "3", "--output-dir=mine")
    assert got["--lora_dropout"] == "0.0" and got["--freeze_llm"] == "True" and got["--seed"] == "3"
    assert (got["--model_name_or_path"], got["--meta_path"], got["--output_dir"]) == ("model", "meta.json", "mine")
    assert (got["--per_device_train_batch_size"], got["--gradient_accumulation_steps"]) == ("4", "4")


def test_the_device_decides_precision_and_deepspeed():
    assert flags(BF16)["--bf16"] == "True" and flags(BF16)["--deepspeed"] == ZERO_1
    assert flags(FP16)["--fp16"] == "True" and "--bf16" not in flags(FP16)
    assert "--deepspeed" not in flags(BF16, DEEPSPEED="")
    cpu = flags(CPU)
    assert (cpu["--bf16"], cpu["--fp16"], cpu["--use_cpu"]) == ("False", "False", "True")
    assert "--deepspeed" not in cpu
    assert flags(CPU, DEEPSPEED="zero.json")["--deepspeed"] == "zero.json"


def test_a_process_to_be_debugged_has_no_torchrun_and_reads_its_own_data():
    command = plan(BF16, "--use_llm_lora", "8", DEBUG="1", PER_DEVICE_BATCH_SIZE="4").command
    assert command[1] == "finetune.py" and "--nproc_per_node=1" not in " ".join(command)
    words = dict(zip(command[2::2], command[3::2], strict=True))
    assert words["--dataloader_num_workers"] == "0" and "--dataloader_prefetch_factor" not in words
    with pytest.raises(UserError, match="DEBUG: is for one process, and GPUS x NNODES are 2. Set GPUS=1"):
        plan(BF16, DEBUG="1", NNODES="2", MASTER_ADDR="10.0.0.1")


def test_lora_on_one_node_does_without_deepspeed():
    lora = ("--use_llm_lora", "128")
    nodes = {"NNODES": "2", "MASTER_ADDR": "10.0.0.1"}
    assert "--deepspeed" not in flags(BF16, *lora)
    assert flags(BF16, "--use_llm_lora", "0")["--deepspeed"] == ZERO_1
    for spelling in ("--use_llm_lora=8", "--use-llm-lora=8"):
        assert (
            "--deepspeed"
            not in make_plan(read_settings(CALL, [spelling], {"BATCH_SIZE": "16"}, Paths()), BF16).command
        )
    assert flags(BF16, *lora, **nodes)["--deepspeed"] == ZERO_1
    assert flags(BF16, *lora, DEEPSPEED=ZERO_1)["--deepspeed"] == ZERO_1


def test_a_gpu_has_the_next_steps_micro_batches_made_meanwhile(monkeypatch):
    monkeypatch.setattr(finetune, "count_cores", lambda: 16)
    got = flags(BF16, BATCH_SIZE="512")  # 128 micro-batches of 4
    assert (got["--dataloader_num_workers"], got["--dataloader_prefetch_factor"]) == ("8", "17")
    assert "--dataloader_prefetch_factor" not in flags(BF16, "--dataloader_num_workers", "0")
    assert "--dataloader_prefetch_factor" not in flags(CPU)
    monkeypatch.setattr(finetune, "count_cores", lambda: 4)
    assert flags(BF16)["--dataloader_num_workers"] == flags(CPU)["--dataloader_num_workers"] == "4"


def test_who_passes_one_of_the_precisions_decides_about_both():
    assert flags(BF16, "--fp16", "True")["--fp16"] == "True"
    assert "--bf16" not in flags(BF16, "--fp16", "True")


@pytest.mark.parametrize(
    ("asked", "device", "message"),
    [
        ("fp16", CPU, "PRECISION: fp16 asked for, and a CPU cannot train in it"),
        ("bf16", FP16, "PRECISION: bf16 asked for, and this machine's GPUs do not have it"),
        ("half", BF16, "PRECISION: expected auto, bf16, fp16 or fp32, found 'half'"),
    ],
)
def test_a_precision_that_the_device_cannot_do_is_refused(asked, device, message):
    with pytest.raises(UserError, match=message):
        choose_precision(asked, device)


@pytest.mark.parametrize(("asked", "device"), [("bf16", CPU), ("bf16", BF16), ("fp16", BF16), ("fp32", FP16)])
def test_a_precision_that_the_device_can_do_is_taken(asked, device):
    assert choose_precision(asked, device) == asked


def test_a_dry_run_says_what_would_be_done(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meta.json").write_text('{"set": {"annotation": "rows.jsonl", "root": "."}}')
    text = "\n".join(plan(BF16).describe())
    assert "BATCH_SIZE 16 = 4 rows per device x 1 process x 1 node x 4 accumulation steps" in text
    assert "Device: cuda, precision bf16, GPUS 1 of the 2 on this machine" in text
    assert "    model       model/config.json (missing)\n    meta        meta.json\n" in text
    assert "    annotation  rows.jsonl (missing)  [set]\n    root        .  [set]\n" in text
    assert f"    deepspeed   {ZERO_1} (missing)" in text


def test_as_many_rows_as_fit_are_chosen_by_the_finetune_and_not_with_deepspeed():
    lora = ("--use_llm_lora", "128")
    for typed, environment in (
        ((), {"PER_DEVICE_BATCH_SIZE": "auto"}),
        (("--per-device-train-batch-size", "auto"), {}),
    ):
        call = [word if word != "4" or not environment else "auto" for word in CALL]
        settings = read_settings(call, [*lora, *typed], {"BATCH_SIZE": "16", **environment}, Paths())
        words = make_plan(settings, BF16).command
        assert words.count("--per_device_train_batch_size") == 1
        got = dict(
            zip(words[words.index("finetune.py") + 1 :: 2], words[words.index("finetune.py") + 2 :: 2], strict=True)
        )
        assert got["--auto_micro_batch"] == "True" and got["--gradient_accumulation_steps"] == "1"
        assert got["--per_device_train_batch_size"] == str(16 // settings.batch.gpus)
        with pytest.raises(
            UserError, match="PER_DEVICE_BATCH_SIZE: is auto, and this training takes .*DEEPSPEED=none"
        ):
            make_plan(read_settings(call, typed, {"BATCH_SIZE": "16", **environment}, Paths()), BF16)
