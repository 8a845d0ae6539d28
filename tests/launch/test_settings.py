"""The settings of a launcher and the batch arithmetic, against plain Python."""

import itertools

import pytest

from internvl.errors import UserError
from internvl.launch.settings import (
    Settings,
    check_nodes,
    divide_batch,
    is_on,
    read_settings,
    resolve_input,
    resolve_output,
)

CASES = list(itertools.product([1, 2, 6, 10, 16, 512], [1, 3, 4, 5, 40], [1, 2, 8], [1, 2]))
NAMES = ("BATCH_SIZE", "PER_DEVICE_BATCH_SIZE", "GPUS", "NNODES")


def settings(batch_size="16", per_device="4", gpus="1", nodes="1", **more: str) -> Settings:
    return Settings(dict(zip(NAMES, map(str, (batch_size, per_device, gpus, nodes)), strict=True)) | more)


def nearest_per_device(batch_size: int, per_device: int, processes: int) -> int | None:
    """The nearest PER_DEVICE_BATCH_SIZE that divides; the smaller one of two."""
    candidates = [n for n in range(1, batch_size + 1) if batch_size % (n * processes) == 0]
    return min(candidates, key=lambda n: (abs(n - min(per_device, batch_size // processes)), n), default=None)


@pytest.mark.parametrize(("batch_size", "per_device", "gpus", "nodes"), CASES)
def test_division_table(batch_size, per_device, gpus, nodes):
    rows = per_device * gpus * nodes
    if batch_size % rows == 0:
        assert divide_batch(settings(batch_size, per_device, gpus, nodes)).steps == batch_size // rows
        return
    with pytest.raises(UserError, match=f"{batch_size} / {rows} is not whole") as refused:
        divide_batch(settings(batch_size, per_device, gpus, nodes))
    advice = str(refused.value).rpartition("Use ")[2]
    around = [n for n in (batch_size // rows * rows, batch_size // rows * rows + rows) if n]
    named = [word.strip(",.") for word in advice.split() if word.startswith("BATCH_SIZE=")]
    assert named == [f"BATCH_SIZE={n}" for n in around]
    other = nearest_per_device(batch_size, per_device, gpus * nodes)
    assert (f"PER_DEVICE_BATCH_SIZE={other}." in advice) == (other is not None)


def test_a_refusal_is_one_sentence_with_the_numbers():
    with pytest.raises(UserError) as refused:
        divide_batch(settings(10))
    assert str(refused.value) == (
        "BATCH_SIZE=10 cannot be split: PER_DEVICE_BATCH_SIZE (4) x GPUS (1) x NNODES (1) = 4 rows per forward pass, "
        "and 10 / 4 is not whole. Use BATCH_SIZE=8 or BATCH_SIZE=12, or PER_DEVICE_BATCH_SIZE=5."
    )


@pytest.mark.parametrize("value", ["0", "-1", "two", "", "4.0", "08", "1e3", "4 4", "a[$(touch pwned)]", "٣"])
@pytest.mark.parametrize("position", range(4))
def test_what_is_not_a_positive_number_is_refused(value, position):
    numbers = ["16", "4", "1", "1"]
    numbers[position] = value
    with pytest.raises(UserError) as refused:
        divide_batch(settings(*numbers))
    message = f"{NAMES[position]}: expected a whole number of 1 or more, found '{value}'."
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


def test_accumulation_steps_decide_the_batch_size():
    batch = divide_batch(settings(16, 2, 3, 1, GRADIENT_ACC="5"))
    assert (batch.size, batch.steps) == (30, 5)
    assert str(batch) == "BATCH_SIZE 30 = 2 rows per device x 3 processes x 1 node x 5 accumulation steps"


@pytest.mark.parametrize(
    ("flags", "setting", "value", "handed_on"),
    [
        (["--per-device-train-batch-size=2"], "PER_DEVICE_BATCH_SIZE", "2", ["--per_device_train_batch_size", "2"]),
        (["--output_dir", "out"], "OUTPUT_DIR", "{here}/out", ["--output_dir", "{here}/out"]),
        (["--model_name_or_path", "there"], "MODEL", "{here}/there", ["--model_name_or_path", "{here}/there"]),
        (["--meta_path", "none"], "META_PATH", "none", ["--meta_path", "none"]),
        (["--deepspeed", "none"], "DEEPSPEED", "none", []),
        (["--use_cpu", "--seed", "3"], "USE_CPU", "True", ["--use_cpu", "True", "--seed", "3"]),
        (["--lora_dropout", "0.0"], "MODEL", "", ["--lora_dropout", "0.0"]),
    ],
)
def test_a_flag_that_says_the_same_as_a_setting_changes_it(tmp_path, flags, setting, value, handed_on):
    root, here = tmp_path / "root", tmp_path / "here"
    (here / "there").mkdir(parents=True)
    root.mkdir()
    read = read_settings({}, flags, here, root)
    assert read[setting] == value.format(here=here)
    assert read.flags == [word.format(here=here) for word in handed_on]
    assert flags[0].partition("=")[0].removeprefix("--").replace("-", "_") in read.given


def test_a_flag_without_its_value_is_refused(tmp_path):
    with pytest.raises(UserError, match="--output_dir: has no value. Write it after the flag"):
        read_settings({}, ["--output_dir", "--seed", "1"], tmp_path, tmp_path)


def test_paths_are_those_of_the_folder_where_the_command_was_typed(tmp_path):
    root, here = tmp_path / "root", tmp_path / "here"
    (here / "mine").mkdir(parents=True)
    root.mkdir()
    assert resolve_input("mine", here, root) == f"{here}/mine" and resolve_input("shell", here, root) == "shell"
    assert resolve_input("/abs", here, root) == "/abs" and resolve_input("-x", here, root) == "./-x"
    assert resolve_output("out", here, root) == f"{here}/out" and resolve_output("out", root, root) == "out"
    assert resolve_output("-x", root, root) == "./-x"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"NNODES": "2"}, "MASTER_ADDR: not set, and NNODES is 2"),
        ({"NODE_RANK": "1"}, "NODE_RANK: expected a number from 0 to 0 .* found '1'"),
        ({"NODE_RANK": "x"}, "found 'x'"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT: expected a port from 1 to 65535, found '99999'"),
    ],
)
def test_nodes_that_do_not_fit_are_refused(changed, message):
    with pytest.raises(UserError, match=message):
        check_nodes(Settings(settings(NODE_RANK="0").values | changed))


def test_nodes_have_an_address_and_several_a_port():
    alone, several = settings(NODE_RANK="0"), settings(nodes=2, NODE_RANK="1", MASTER_ADDR="10.0.0.1")
    check_nodes(alone)
    check_nodes(several)
    assert (alone["MASTER_ADDR"], alone["MASTER_PORT"]) == ("127.0.0.1", "")
    assert (several["MASTER_ADDR"], several["MASTER_PORT"]) == ("10.0.0.1", "34229")


@pytest.mark.parametrize(("value", "expected"), [("1", 1), ("True", 1), ("yes", 1), ("", 0), ("no", 0), ("FALSE", 0)])
def test_switches(value, expected):
    assert is_on(value) is bool(expected) and is_on(None) is False
