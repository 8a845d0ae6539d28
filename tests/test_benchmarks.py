"""Every benchmark runs, at a tiny setting, and writes its figures."""

import json
import subprocess

import pytest


@pytest.fixture
def run_benchmark(warm_python):
    """``run_benchmark(script, json_file, argument, …)`` runs a benchmark and returns the figures it wrote."""

    def run(script, json_file, *arguments) -> dict:
        command = [warm_python, script, "--json", json_file, *arguments]
        result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return json.loads(json_file.read_text())

    return run


@pytest.mark.slow
def test_tokenizer_benchmark_runs(run_benchmark, repository, tiny_base, tmp_path):
    script = repository / "benchmarks" / "tokenizer.py"
    figures = run_benchmark(script, tmp_path / "figures.json", "--tokenizer", tiny_base, "--texts", 20, "--rounds", 1)
    assert figures["texts"] == 20 and figures["texts_with_other_ids"] == 0
    assert all(seconds > 0 for seconds in figures["median_seconds"].values())
    assert figures["slow_over_fast"].keys() == {"load", "encode", "encode_one_by_one", "decode"}


def test_full_size_rehearsal_runs_every_stage_on_a_small_shape(run_benchmark, repository, tiny_base, tmp_path):
    script = repository / "benchmarks" / "full_size.py"
    figures = run_benchmark(script, tmp_path / "figures.json", "--model", tiny_base, "--steps", 2)
    assert len(figures["stages"]) == 5 and len(figures["losses"]) == 2
    assert all(stage["seconds"] > 0 and stage["peak_gib"] > 0 for stage in figures["stages"])
    assert figures["gigabytes"]["merged"] == pytest.approx(figures["gigabytes"]["base"], rel=0.01)
    assert isinstance(figures["caption"], str)


def test_full_size_rehearsal_refuses_a_folder_without_config(warm_python, repository, tmp_path):
    command = [warm_python, repository / "benchmarks" / "full_size.py", "--model", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "holds neither config.json" in result.stderr


def test_check_data_benchmark_runs(run_benchmark, repository, tiny_base, tmp_path):
    script = repository / "benchmarks" / "check_data.py"
    figures = run_benchmark(script, tmp_path / "figures.json", "--rows", 50, "--images", 5, "--tokenizer", tiny_base)
    assert figures["ways"].keys() == {"one process", "all cores", "kept result"}
    assert all((way["rows"], way["errors"]) == (50, 0) for way in figures["ways"].values())


def test_convert_annotations_benchmark_runs(run_benchmark, repository, tmp_path):
    script = repository / "benchmarks" / "convert_annotations.py"
    figures = run_benchmark(script, tmp_path / "figures.json", "--rows", 100)
    assert figures["array"]["rows"] == figures["lines"]["rows"] == 100


@pytest.mark.slow
def test_evaluation_benchmark_runs(run_benchmark, repository, tiny_base, tmp_path):
    script = repository / "benchmarks" / "evaluation.py"
    arguments = ["--checkpoint", tiny_base, "--limit", 6, "--batch-size", 3, "--rounds", 1, "--images", 20]
    figures = run_benchmark(script, tmp_path / "figures.json", *arguments)
    assert figures["images"] == 6 and figures["scored_images"] == 20
    assert figures["batched_over_one_by_one"] > 0 and figures["scoring_seconds"] > 0


TINY = ("--size", "tiny", "--tiles", 2, "--rounds", 1, "--threads", 1)


@pytest.mark.slow
def test_training_benchmark_runs_and_all_ways_train_the_same(run_benchmark, repository, tmp_path):
    script, file = repository / "benchmarks" / "train.py", tmp_path / "figures.json"
    arguments = [*TINY, "--captions", 2, "--folder", tmp_path / "checkpoints", "--plot", tmp_path / "figures.png"]
    run_benchmark(script, file, *arguments, "--profile", tmp_path / "trace.json")
    figures = run_benchmark(script, file, *arguments, "--scenario", "cache", "--ways", "second_epoch", "first_epoch")
    assert figures.keys() == {"main", "cache"}  # the second run is put beside the first
    ways = figures["main"]["points"][0]["ways"]
    assert ways.keys() == {"ours", "plain", "plain_kept", "hf"}
    for way in ways.values():
        # fp32 sums in another order; the gradient norm differs by 2e-2 where captions of an image see each other.
        assert way["loss"] == pytest.approx(ways["ours"]["loss"], rel=1e-5)
        assert way["grad_norm"] == pytest.approx(ways["ours"]["grad_norm"], rel=1e-5)
        assert way["rows_per_second"] > 0 and way["peak_mib"] > way["above_start_mib"] > 0
    assert figures["main"]["points"][0]["ratios"].keys() == {"plain", "plain_kept", "hf"}
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert (tmp_path / "figures.png").stat().st_size > 0


@pytest.mark.slow
def test_training_benchmark_packs_texts(run_benchmark, repository, tmp_path):
    script = repository / "benchmarks" / "train.py"
    figures = run_benchmark(script, tmp_path / "figures.json", *TINY, "--scenario", "mixed")["mixed"]
    packed, padded, _ = figures["points"][0]["ways"].values()
    assert packed["loss"] == pytest.approx(padded["loss"], rel=1e-5)
    assert packed["peak_mib"] < 1.1 * padded["peak_mib"]  # of a tiny model, most of it is the program


def test_training_benchmark_refuses_a_folder_without_config(warm_python, repository, tmp_path):
    script = repository / "benchmarks" / "train.py"
    command = [warm_python, script, "--size", "full", "--published", tmp_path]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert result.returncode == 2 and "holds neither config.json" in result.stderr


@pytest.mark.slow
def test_generation_benchmark_runs(run_benchmark, repository, tmp_path):
    script = repository / "benchmarks" / "generate.py"
    figures = run_benchmark(script, tmp_path / "figures.json", *TINY, "--images", 3, "--batch-size", 2)
    assert figures["beams"].keys() == {"1", "3"}
    for measured in figures["beams"].values():
        assert measured["answers_unlike_ours"] == {"plain": 0, "transformers": 0}
        assert measured["different_answers"] > 1  # or equal ids would say little
        assert measured["images_per_second"].keys() == {"ours", "plain", "transformers"}


def test_reward_benchmark_has_both_ways_train_alike(run_benchmark, repository, tmp_path):
    script = repository / "benchmarks" / "reward.py"
    figures = run_benchmark(
        script, tmp_path / "figures.json", "--size", "tiny", "--tiles", 1, 2, "--answers", 2, "--new-tokens", 4,
        "--rounds", 1, "--dtype", "fp32",
    )  # fmt: skip
    assert [(point["tiles"], point["answers"]) for point in figures["points"]] == [(1, 2), (2, 2)]
    for point in figures["points"]:
        assert point["shared"]["tokens"] < point["unshared"]["tokens"] and point["gradients_apart"] < 1e-4


def test_attention_benchmark_has_both_ways_give_the_same_gradients(run_benchmark, repository, tmp_path):
    script = repository / "benchmarks" / "attention.py"
    figures = run_benchmark(script, tmp_path / "f.json", "--rows", 1, 3, "--row-tokens", 8, "--rounds", 1)
    assert [point["rows"] for point in figures["points"]] == [1, 3]
    assert all(point["backward_faster"] > 0 for point in figures["points"])
