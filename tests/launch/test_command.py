"""The command: its words, its share of the machine, and how it is shown."""

import subprocess

import pytest

from internvl.errors import UserError
from internvl.launch import command
from internvl.launch.command import CPU, Device, command_lines, prepare_device, torchrun
from internvl.launch.settings import Nodes
from tests.conftest import REPOSITORY

GPUS = Device("cuda", "bf16", 2)


def test_torchrun_words(monkeypatch):
    monkeypatch.delenv("SHUTDOWN_SECONDS", raising=False)
    words = torchrun(4, Nodes(2, 1, "10.0.0.1", 1234))
    assert {"--nnodes=2", "--node_rank=1", "--master_addr=10.0.0.1", "--master_port=1234"} < set(words)
    assert {"--nproc_per_node=4", "--shutdown_timeout=120"} < set(words)
    monkeypatch.setenv("SHUTDOWN_SECONDS", "7")
    assert "--shutdown_timeout=7" in torchrun(1, Nodes())
    first, second = (int(torchrun(1, Nodes())[-3].partition("=")[2]) for _ in range(2))
    assert 1024 < first < 65536 and 1024 < second < 65536


def test_more_gpus_than_there_are_are_refused_but_in_a_dry_run():
    prepare_device(GPUS, 2, dry_run=False)
    prepare_device(GPUS, 3, dry_run=True)
    with pytest.raises(UserError, match="GPUS: 3 asked for, and this machine has 2. Set GPUS=2"):
        prepare_device(GPUS, 3, dry_run=False)


@pytest.mark.parametrize(("set_by_user", "processes", "threads"), [("", 2, "4"), ("", 99, "1"), ("3", 2, "3")])
def test_processes_share_the_cores_of_a_cpu(monkeypatch, set_by_user, processes, threads):
    monkeypatch.setattr(command, "count_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", set_by_user)
    if not set_by_user:
        monkeypatch.delenv("OMP_NUM_THREADS")
    prepare_device(CPU, processes, dry_run=False)
    assert command.os.environ["OMP_NUM_THREADS"] == threads


def test_a_shell_reads_the_command_as_it_is():
    words = ["printf", "%s\\0", "a b", "it's", "$(touch pwned)", "two\nlines", "tab\t\\'", "*", "", "café", "\udcff"]
    text = command_lines(words)
    assert text.startswith(f"cd {REPOSITORY}\nexport ") and text.count("\n") == 2
    last_line = text.splitlines()[-1].encode("utf-8", "surrogateescape")
    printed = subprocess.run(["bash", "-c", last_line], capture_output=True, check=True).stdout
    assert printed.decode("utf-8", "surrogateescape").split("\0")[:-1] == words[2:]
