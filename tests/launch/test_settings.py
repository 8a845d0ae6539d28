"""The settings of a finetune: from the launcher's call and the environment, overruled by flags."""

import pytest

from internvl.errors import UserError
from internvl.launch.flags import Paths
from internvl.launch.settings import Nodes, Settings, read_nodes, read_settings

CALL = (
    "torchrun --nproc_per_node=1 finetune.py --model_name_or_path model --meta_path meta.json --output_dir out "
    "--per_device_train_batch_size 4 --gradient_accumulation_steps auto --freeze_llm True --lora_dropout 0.1"
).split()


@pytest.fixture
def read(tmp_path):
    """``read(flag, …, NAME=value, …)`` gives the settings of CALL, typed in the folder ``here``."""
    root, here = tmp_path / "root", tmp_path / "here"
    (here / "there").mkdir(parents=True)
    root.mkdir()

    def settings(*typed: str, **environment: str) -> Settings:
        flags = [word.format(here=here) for word in typed]
        return read_settings(CALL, flags, {"BATCH_SIZE": "16", **environment}, Paths(here, root))

    return settings


def test_a_call_without_flags(read):
    settings = read()
    assert (settings.script, settings.model, settings.meta_path) == ("finetune.py", "model", "meta.json")
    assert settings.output_dir == "out", "the launcher's own paths are right already"
    assert (settings.batch.size, settings.batch.per_device, settings.batch.gpus, settings.batch.steps) == (16, 4, 1, 4)
    assert (settings.precision, settings.deepspeed, settings.nodes) == ("auto", None, Nodes())
    assert not (settings.use_cpu or settings.dry_run or settings.flags or settings.given)
    assert settings.recipe == ["--freeze_llm", "True", "--lora_dropout", "0.1"]


@pytest.mark.parametrize(
    ("typed", "name", "value", "passed_on"),
    [
        (["--output_dir", "out"], "output_dir", "{here}/out", ["--output_dir", "{here}/out"]),
        (["--model-name-or-path=there"], "model", "{here}/there", ["--model_name_or_path", "{here}/there"]),
        (["--meta_path", "none"], "meta_path", "none", ["--meta_path", "none"]),
        (["--deepspeed", "none"], "deepspeed", "", []),
        (["--deepspeed", "there"], "deepspeed", "{here}/there", ["--deepspeed", "{here}/there"]),
        (["--use_cpu", "--seed", "3"], "use_cpu", True, ["--use_cpu", "True", "--seed", "3"]),
        (["--use_cpu", "False"], "use_cpu", False, ["--use_cpu", "False"]),
        (["--resume_from_checkpoint", "there"], "model", "model", ["--resume_from_checkpoint", "{here}/there"]),
        (["--resume_from_checkpoint"], "model", "model", ["--resume_from_checkpoint", "True"]),
        (["--lora_dropout", "0.0"], "model", "model", ["--lora_dropout", "0.0"]),
    ],
)
def test_a_flag_that_says_the_same_as_a_setting_changes_it(read, tmp_path, typed, name, value, passed_on):
    settings = read(*typed)
    here = tmp_path / "here"
    assert getattr(settings, name) == (value.format(here=here) if isinstance(value, str) else value)
    assert settings.flags == [word.format(here=here) for word in passed_on]
    assert typed[0].partition("=")[0].removeprefix("--").replace("-", "_") in settings.given


def test_flags_change_the_arithmetic(read):
    batch = read("--per-device-train-batch-size=2", "--gradient_accumulation_steps", "3").batch
    assert (batch.size, batch.per_device, batch.steps) == (6, 2, 3)
    assert read("--per_device_train_batch_size", "8").batch.steps == 2


def test_an_empty_setting_is_one_that_is_not_set_but_for_deepspeed(read):
    settings = read(PRECISION="", NNODES="", DRY_RUN="", DEEPSPEED="", MASTER_PORT="")
    assert (settings.precision, settings.batch.nodes, settings.dry_run) == ("auto", 1, False)
    assert settings.deepspeed == ""
    assert read(DEEPSPEED="none").deepspeed == ""
    assert read(DEEPSPEED="zero.json").deepspeed == "zero.json"
    assert read("--deepspeed", "none", DEEPSPEED="zero.json").deepspeed == ""


@pytest.mark.parametrize(
    ("count", "environment", "message"),
    [
        (2, {}, "MASTER_ADDR: not set, and NNODES is 2"),
        (1, {"NODE_RANK": "1"}, "NODE_RANK: expected a number from 0 to 0 .* found '1'"),
        (1, {"NODE_RANK": "x"}, "found 'x'"),
        (1, {"MASTER_PORT": "99999"}, "MASTER_PORT: expected a port from 1 to 65535, found '99999'"),
    ],
)
def test_nodes_that_do_not_fit_are_refused(count, environment, message):
    with pytest.raises(UserError, match=message):
        read_nodes(count, environment)


def test_several_nodes_have_a_port():
    assert read_nodes(2, {"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}) == Nodes(2, 1, "10.0.0.1", 34229)
    assert read_nodes(1, {"MASTER_PORT": "1234"}) == Nodes(port=1234)
