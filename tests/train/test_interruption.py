"""A signal during a training is never lost, whichever line it interrupts."""

import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from internvl.train import interruption
from internvl.train.interruption import Heartbeat, StopOnSignal

ARGUMENTS = SimpleNamespace(device=torch.device("cpu"))


@pytest.fixture
def stop():
    callback = StopOnSignal()
    callback.on_train_begin(ARGUMENTS, None, None)
    yield callback
    callback.on_train_end(ARGUMENTS, SimpleNamespace(global_step=0, max_steps=3), None)


def step(callback: StopOnSignal, number: int) -> bool:
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    callback.on_step_end(ARGUMENTS, SimpleNamespace(global_step=number, max_steps=3), control)
    return control.should_save and control.should_training_stop


def test_a_signal_before_the_end_of_a_step_stops_after_it(stop):
    assert not step(stop, 1)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert step(stop, 2) and stop.caught == signal.SIGUSR1


def test_a_signal_while_the_processes_agree_stops_after_the_next_step(stop, monkeypatch):
    # Every process gets it while they exchange what they have: nobody has put it into that exchange.
    def exchange(numbers, operation):
        if not stop.caught and not exchange.sent:
            exchange.sent = True
            os.kill(os.getpid(), signal.SIGTERM)

    exchange.sent = False
    monkeypatch.setattr(interruption.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(interruption.distributed, "all_reduce", exchange)
    assert not step(stop, 1)
    assert step(stop, 2) and stop.caught == signal.SIGTERM


def test_a_signal_in_the_last_step_leaves_a_whole_training(stop):
    os.kill(os.getpid(), signal.SIGTERM)
    assert not step(stop, 3)
    stop.on_train_end(ARGUMENTS, SimpleNamespace(global_step=3, max_steps=3), None)
    assert stop.caught == 0


def test_a_rank_that_waits_says_once_who_is_behind_before_the_wait_ends_it(monkeypatch, caplog):
    # NCCL's watchdog ends a process without an error that could be caught: the message has to come before.
    monkeypatch.setattr(interruption.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(interruption, "describe_stragglers", lambda: "process 1 is behind (step 3, micro-batch 1)")
    heart = Heartbeat(limit=0.5)
    heart.on_train_begin(ARGUMENTS, None, None)
    time.sleep(1.0)
    heart.on_train_end(ARGUMENTS, None, None)
    assert [record.message for record in caplog.records] == [
        "No step in 0 s: process 1 is behind (step 3, micro-batch 1)."
    ]


def test_a_rank_that_goes_on_says_nothing(monkeypatch, caplog):
    monkeypatch.setattr(interruption, "describe_stragglers", lambda: "process 1 is behind (step 3, micro-batch 1)")
    heart = Heartbeat(limit=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(interruption.distributed, "is_initialized", lambda: True)
        heart.on_train_begin(ARGUMENTS, None, None)
    for _ in range(20):
        heart.on_step_end(ARGUMENTS, SimpleNamespace(global_step=1), None)
        time.sleep(0.1)
    heart.on_train_end(ARGUMENTS, None, None)
    assert not caplog.records
