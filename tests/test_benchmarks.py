"""Every benchmark runs, at a tiny setting, and writes its figures."""

import json
import subprocess
import sys

import pytest


def run_benchmark(script, json_file, *arguments) -> dict:
    """Run a benchmark as a user does and return the figures it wrote."""
    command = [sys.executable, script, "--json", json_file, *arguments]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(json_file.read_text())


def test_tokenizer_benchmark_runs(repository, tiny_base, tmp_path):
    script = repository / "benchmarks" / "tokenizer.py"
    figures = run_benchmark(script, tmp_path / "figures.json", "--tokenizer", tiny_base, "--texts", 20, "--rounds", 1)
    assert figures["texts"] == 20 and figures["texts_with_other_ids"] == 0
    assert all(seconds > 0 for seconds in figures["median_seconds"].values())
    assert figures["slow_over_fast"].keys() == {"load", "encode", "encode_one_by_one", "decode"}


def test_full_size_rehearsal_runs_every_stage_on_a_small_shape(repository, tiny_base, tmp_path):
    script = repository / "benchmarks" / "full_size.py"
    figures = run_benchmark(script, tmp_path / "figures.json", "--published", tiny_base, "--steps", 2)
    assert len(figures["stages"]) == 5 and len(figures["losses"]) == 2
    assert all(stage["seconds"] > 0 and stage["peak_gib"] > 0 for stage in figures["stages"])
    assert figures["gigabytes"]["merged"] == pytest.approx(figures["gigabytes"]["base"], rel=0.01)
    assert isinstance(figures["caption"], str)


def test_full_size_rehearsal_refuses_a_folder_without_config(repository, tmp_path):
    command = [sys.executable, repository / "benchmarks" / "full_size.py", "--published", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "holds neither config.json" in result.stderr


def test_check_data_benchmark_runs(repository, tiny_base, tmp_path):
    script = repository / "benchmarks" / "check_data.py"
    figures = run_benchmark(script, tmp_path / "figures.json", "--rows", 50, "--pictures", 5, "--tokenizer", tiny_base)
    assert figures["ways"].keys() == {"one process", "all cores", "kept result"}
    assert all((way["rows"], way["errors"]) == (50, 0) for way in figures["ways"].values())


def test_convert_annotations_benchmark_runs(repository, tmp_path):
    script = repository / "benchmarks" / "convert_annotations.py"
    figures = run_benchmark(script, tmp_path / "figures.json", "--rows", 100)
    assert figures["array"]["rows"] == figures["lines"]["rows"] == 100


def test_evaluation_benchmark_runs(repository, tiny_base, tmp_path):
    script = repository / "benchmarks" / "evaluation.py"
    arguments = ["--checkpoint", tiny_base, "--limit", 6, "--batch-size", 3, "--rounds", 1, "--images", 20]
    figures = run_benchmark(script, tmp_path / "figures.json", *arguments)
    assert figures["pictures"] == 6 and figures["scored_images"] == 20
    assert figures["batched_over_one_by_one"] > 0 and figures["scoring_seconds"] > 0
