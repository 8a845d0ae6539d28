"""Weights sharded over ranks whose micro-batches differ in tiles and labels: all train as unsharded ones do."""

import json

import pytest

ZERO_3 = ("--deepspeed", "shell/deepspeed/zero_stage3_config.json")
FSDP2 = ("--fsdp", "True", "--fsdp_config", "shell/fsdp/fsdp2_config.json")
SMALL = {"small_calls": True}
# Two ranks whose rows have other numbers of tiles and answers of other lengths, and no dropout to tell them apart.
FLAGS = ("--max_steps", "3", "--save_strategy", "no", "--lora_dropout", "0.0", "--packing", "False")


def losses(folder) -> list[float]:
    state = json.loads((folder / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "ranks"), [(ZERO_3, SMALL), (FSDP2, SMALL | {"fsdp": True})], ids=["ZeRO-3", "FSDP2"]
)
def test_ranks_with_unequal_work_make_equally_many_calls(train, tmp_path, expected, flags, ranks):
    log = tmp_path / "log.txt"
    if not expected:
        assert train(tmp_path / "plain", 2, flags=FLAGS) == 0, log.read_text()[-3000:]
        expected["losses"] = losses(tmp_path / "plain")
    assert train(tmp_path / "sharded", 2, flags=(*FLAGS, *flags), all_ranks=ranks) == 0, log.read_text()[-3000:]
    assert losses(tmp_path / "sharded") == pytest.approx(expected["losses"], rel=1e-4)
