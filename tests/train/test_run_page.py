"""The page of a run: what it shows, how large it gets, what it says of odd curves; it never ends a training."""

import json
import logging
import math
import time
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerState

from internvl.train import internvl_chat_finetune
from internvl.train.memory import MemoryPlan
from internvl.train.run_page import MAX_POINTS, Page, RunPage, averaged, curve, judge_curves, make_chart, render

LORA = ["--freeze_llm", "True", "--freeze_mlp", "True", "--freeze_backbone", "True", "--use_llm_lora", "4"]
PLAN = MemoryPlan(1 << 30, 1 << 20, 0, 0, 1 << 20, 1 << 10, 24, 0, 0, 1 << 34)


def log(steps: int, **curves) -> list[dict]:
    return [{"step": step, **{name: make(step) for name, make in curves.items()}} for step in range(1, steps + 1)]


def test_a_long_curve_is_averaged_to_few_points():
    points = [(step, float(step % 2)) for step in range(1, 10_001)]
    drawn = averaged(points)
    assert len(drawn) <= MAX_POINTS and all(value == pytest.approx(0.5, abs=0.02) for _, value in drawn)
    assert averaged(points[:5]) == points[:5]
    chart = make_chart("Loss", {"loss": [*points, (10_001, math.nan)], "none": []})
    assert chart and [line.name for line in chart.lines] == ["loss"] and chart.last == 10_000
    assert make_chart("Loss", {"loss": []}) is None


def test_a_run_of_10000_steps_is_a_small_page_that_is_made_quickly():
    curves = {
        "loss": lambda s: 1 / s,
        "grad_norm": lambda s: 1.0,
        "learning_rate": lambda s: 1e-5,
        "data_wait": lambda s: 0.1,
    }
    state = TrainerState(global_step=10_000, max_steps=10_000, log_history=log(10_000, **curves))
    page = Page("run", "finetune", PLAN, rows_per_step=16)
    started = time.process_time()
    text = render(page, state, "finished")
    assert time.process_time() - started < 1.5 and len(text.encode()) < 200_000
    assert text.count("<polyline") == 4 and 'http-equiv="refresh"' not in text
    assert "http://" not in text and "https://" not in text


@pytest.mark.parametrize(
    ("history", "words"),
    [
        (log(60, loss=lambda s: 1 + s / 30), "The loss rises"),
        (log(60, grad_norm=lambda s: 1.0 if s < 56 else 50.0), "Gradients have grown tenfold"),
        (log(60, data_wait=lambda s: 0.6), "waits for data 60% of the time: raise --dataloader_num_workers"),
        (log(5, eval_loss=lambda s: abs(s - 2) + 1.0), "lowest at step 2 (1.0000) and rises"),
        (log(3, loss=lambda s: math.nan), "A loss was not a number"),
    ],
)
def test_a_curve_outside_what_is_healthy_says_what_it_may_mean(history, words):
    [said] = judge_curves(history)
    assert words in said


def test_healthy_curves_say_nothing():
    falling = log(100, loss=lambda s: 3 / s, grad_norm=lambda s: 1.0 + s % 3, data_wait=lambda s: 0.02)
    assert judge_curves(falling + log(5, eval_loss=lambda s: 1 / s)) == []


def test_what_comes_from_outside_is_escaped():
    page = Page("<b>run</b>", "finetune --a '<script>alert(1)</script>'", None, warnings=["<img src=x>"])
    text = render(page, TrainerState(global_step=1, max_steps=2, log_history=log(1, loss=lambda s: 1.0)), "running")
    assert "<script>alert" not in text and "<img src=x>" not in text and "<b>run" not in text


def test_a_training_keeps_its_page_with_the_answers_of_each_evaluation(tiny_base, rows_folder, tmp_path):
    folder = tmp_path / "run"
    given = [
        "--model_name_or_path",
        tiny_base,
        "--meta_path",
        rows_folder / "meta.json",
        "--output_dir",
        folder,
        *LORA,
    ]
    given += ["--max_steps", 4, "--per_device_train_batch_size", 4, "--use_cpu", True, "--logging_steps", 1]
    given += ["--eval_meta_path", rows_folder / "meta.json", "--eval_caption_steps", 2, "--eval_caption_samples", 3]
    given += ["--report_to", "none", "--dataloader_num_workers", 0, "--save_strategy", "no"]
    internvl_chat_finetune.main([str(part) for part in given])
    text = (folder / "run.html").read_text()
    assert "finished</span>, written" in text and "4 of 4" in text and "memory, planned" in text
    assert all(f"<th>step {step}</th>" in text for step in (2, 4)) and "data:image/jpeg;base64," in text
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert f"CIDEr {curve(history, 'eval_CIDEr')[-1][1]:.4g}" in text.replace("eval_", "")


def test_a_page_that_cannot_be_written_ends_nothing_and_warnings_are_shown(tmp_path):
    state = TrainerState(
        global_step=1, max_steps=2, is_world_process_zero=True, log_history=log(1, loss=lambda s: 1.0)
    )
    page = RunPage(tmp_path / "run", rows_per_step=4, plan=None, evaluator=None)
    page.on_train_begin(SimpleNamespace(device=torch.device("cpu")), state, None)
    logging.getLogger("internvl.data").warning("Skipped a.jsonl:7: has no picture")
    page.on_train_end(SimpleNamespace(), state, None)
    text = (tmp_path / "run" / "run.html").read_text()
    assert "Skipped a.jsonl:7: has no picture" in text and "stopped</span>, written" in text
    (tmp_path / "file").write_text("")
    RunPage(tmp_path / "file", rows_per_step=4, plan=None, evaluator=None).write(state, "running")
