"""Loss and CIDEr of held-out rows while a model trains, the best checkpoint, and stopping early."""

import json

import pytest
import torch
from safetensors.torch import load_file

from internvl.data.dataset import ConversationDataset
from internvl.data.meta import read_meta
from internvl.model.loading import load_model
from internvl.train.arguments import parse_arguments
from internvl.train.setup import render_settings
from tests.conftest import pixels
from tests.end_to_end.launching import losses, run_launcher

MATCH = "regex:(.)"  # by the first letter: four steps teach no more
STEPS = ["--max_steps", "4", "--save_steps", "2", "--save_total_limit", "9", "--learning_rate", "1e-3"]
CAPTIONS = ["--eval_caption_steps", "4", "--eval_caption_samples", "100", "--dynamic_image_size", "True"]
ANSWERS = ["--eval_answer_steps", "2", "--eval_match", MATCH]


def entries(folder, key: str) -> dict[int, float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry[key] for entry in history if key in entry}


def slow_loss(folder, meta: str) -> float:
    """The mean loss over supervised tokens, row by row, from plain log-probabilities."""
    model, tokenizer = load_model(folder)
    _, data_args, _ = parse_arguments(["--model_name_or_path", "x", "--output_dir", "y", "--meta_path", meta])
    total, count = 0.0, 0
    for row in ConversationDataset(read_meta(meta), tokenizer, render_settings(data_args, model.config)):
        ids, labels = row.input_ids[None], row.labels
        with torch.no_grad():
            scores = model(pixels(row), ids).logits[0].log_softmax(-1)
        for position in range(1, len(labels)):
            if labels[position] != -100:
                total -= scores[position - 1, labels[position]].item()
                count += 1
    return total / count


def test_evaluating_measures_exactly_and_leaves_the_training_alone(finetune, rows_folder, tmp_path):
    meta = str(rows_folder / "meta.json")
    plain, process = finetune("plain", *STEPS)
    assert process.returncode == 0, process.stderr
    watched, process = finetune("watched", *STEPS, "--eval_meta_path", meta, *CAPTIONS, *ANSWERS)
    assert process.returncode == 0, process.stderr
    assert losses(watched) == losses(plain)
    assert "Step 4: eval loss" in process.stdout + process.stderr
    measured = entries(watched, "eval_loss")
    assert list(measured) == [2, 4]
    for step, loss in measured.items():
        assert loss == pytest.approx(slow_loss(watched / f"checkpoint-{step}", meta), abs=1e-5)
    result = tmp_path / "result"
    flags = ["--meta", meta, "--dynamic", "--out-dir", str(result)]
    done = run_launcher("evaluate.sh", str(watched), "caption-train", *flags)
    assert done.returncode == 0, done.stderr
    cider = json.loads((result / "scores.json").read_text())["CIDEr"]
    assert entries(watched, "eval_CIDEr") == {4: pytest.approx(cider, abs=1e-9)}
    flags[-1] = str(tmp_path / "answers")
    done = run_launcher("evaluate.sh", str(watched), "answers-train", *flags, "--match", MATCH)
    assert done.returncode == 0, done.stderr
    accuracy = json.loads((tmp_path / "answers" / "scores.json").read_text())["accuracy"]
    assert list(entries(watched, "eval_accuracy")) == [2, 4]
    assert entries(watched, "eval_accuracy")[4] == accuracy

    two, process = finetune("two", *STEPS, "--eval_meta_path", meta, *CAPTIONS, GPUS="2", PER_DEVICE_BATCH_SIZE="2")
    assert process.returncode == 0, process.stderr
    assert entries(two, "eval_loss")[2] == pytest.approx(slow_loss(two / "checkpoint-2", meta), abs=1e-5)
    assert len(entries(two, "eval_CIDEr")) == 1


def test_the_best_checkpoint_is_kept_and_taken_and_a_run_that_gets_worse_stops(finetune, rows_folder):
    flags = ["--max_steps", "40", "--save_steps", "2", "--save_total_limit", "1", "--learning_rate", "1"]
    best = ["--load_best_model_at_end", "True", "--early_stopping_patience", "2", "--lr_scheduler_type", "constant"]
    folder, process = finetune("best", *flags, *best, "--eval_meta_path", str(rows_folder / "meta.json"))
    assert process.returncode == 0, process.stderr
    state = json.loads((folder / "trainer_state.json").read_text())
    measured = entries(folder, "eval_loss")
    step = min(measured, key=measured.get)
    assert state["global_step"] < 40 and state["best_global_step"] == step < state["global_step"]
    kept = load_file(folder / f"checkpoint-{step}" / "adapter_model.safetensors")
    taken = load_file(folder / "adapter_model.safetensors")
    assert kept.keys() == taken.keys() and all(torch.equal(kept[name], taken[name]) for name in kept)


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", ["none", "shell/deepspeed/zero_stage1_config.json"])
def test_a_bf16_training_with_trained_projector_is_evaluated(deepspeed, finetune, rows_folder):
    flags = ["--freeze_mlp", "False", "--max_steps", "4", "--save_steps", "2", "--eval_caption_steps", "2"]
    best = ["--load_best_model_at_end", "True", "--metric_for_best_model", "CIDEr"]
    meta = str(rows_folder / "meta.json")
    settings = {"PRECISION": "bf16", "DEEPSPEED": deepspeed}
    folder, process = finetune("bf16", *flags, *best, "--eval_meta_path", meta, **settings)
    assert process.returncode == 0, process.stderr
    assert list(entries(folder, "eval_CIDEr")) == [2, 4]
    state = json.loads((folder / "trainer_state.json").read_text())
    best = load_file(folder / f"checkpoint-{state['best_global_step']}" / "adapter_model.safetensors")
    taken = load_file(folder / "adapter_model.safetensors")
    assert best.keys() == taken.keys() and all(torch.equal(best[name], taken[name]) for name in best)


def test_a_missing_meta_file_of_held_out_rows_is_named(finetune):
    _, process = finetune("refused", "--eval_meta_path", "nowhere.json")
    assert process.returncode == 2
    assert "nowhere.json: there is no such meta file" in process.stderr and "Traceback" not in process.stderr
