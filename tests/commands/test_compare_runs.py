"""tools/compare_runs.py: what differs between trainings, and how they came out."""

import json

import pytest

from internvl.commands.compare_runs import differences, main, read_run, results


def write_run(folder, losses, *, rate=1e-4, evaluations=(), finished=True, **fields):
    folder.mkdir(parents=True)
    record = {
        "command": ["x", "--output_dir", str(folder)],
        "FinetuneArguments": {"learning_rate": rate, "output_dir": str(folder), "seed": 3},
        "data": {"rows.jsonl": "ab12"},
        "versions": {"torch": "2.14.1"},
        **fields,
    }
    (folder / "training_args.json").write_text(json.dumps(record))
    history = [{"step": number, "loss": loss} for number, loss in enumerate(losses, 1)]
    history += [{"step": step, "eval_loss": loss} for step, loss in evaluations]
    history.append({"step": len(losses), "train_runtime": 61.2, "train_samples_per_second": 12.34})
    if finished:
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    return folder


@pytest.fixture
def runs(tmp_path):
    first = write_run(tmp_path / "a", [4.0, 3.0, 2.0, 1.0], evaluations=[(2, 2.5), (4, 2.7)])
    second = write_run(tmp_path / "b", [4.0, 3.0, 1.5, 0.5], rate=2e-4, data={"rows.jsonl": "cd34"}, device="cpu")
    return first, second


def test_settings_data_and_devices_that_differ_are_found_and_no_folders(runs):
    found = differences([read_run(folder) for folder in runs])
    assert found == {
        "--learning_rate": [1e-4, 2e-4],
        "data.rows.jsonl": ["ab12", "cd34"],
        "device": [None, "cpu"],
    }


def test_results_are_ends_of_the_curve_and_the_best_evaluation(runs):
    assert results(read_run(runs[0])) == {
        "state": "finished",
        "steps": "4",
        "loss, first tenth": "4.0000",
        "loss, last tenth": "1.0000",
        "best eval_loss": "2.5000 at step 2",
        "seconds": "61",
        "rows/s": "12.3",
    }


def test_the_command_prints_tables_and_draws_curves(runs, tmp_path, capsys):
    main([*map(str, runs), "--plot", str(tmp_path / "plots" / "curves.png")])
    shown = capsys.readouterr().out
    assert "--learning_rate" in shown and "0.0002" in shown and "2.5000 at step 2" in shown
    assert "The first two runs have the same losses before step 3." in shown
    assert shown.splitlines()[-1] == str(tmp_path / "plots" / "curves.png")
    assert (tmp_path / "plots" / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([4.0, 3.0, 2.0, 1.0], "the same loss in all 4 steps"),
        ([4.0, 3.0], "the same loss in all 2 steps"),
        ([4.1, 3.0], "differ from the first logged step on (1)"),
        ([], "No step was logged in both"),
    ],
)
def test_it_says_from_where_losses_differ(losses, said, runs, tmp_path, capsys):
    main([str(runs[0]), str(write_run(tmp_path / "c", losses))])
    assert said in capsys.readouterr().out


def test_a_run_repeated_differs_in_nothing(runs, tmp_path, capsys):
    main([str(runs[0]), str(write_run(tmp_path / "again", [4.0, 3.0, 2.0, 1.0]))])
    assert "Nothing differs but the output folders" in capsys.readouterr().out


def test_what_is_no_run_is_refused(runs, tmp_path, capsys):
    waiting = write_run(tmp_path / "waiting", [], finished=False)
    for argv, message in (
        ([runs[0]], "is one run. Name two or more"),
        ([runs[0], tmp_path], "holds no training_args.json that can be read"),
        ([runs[0], waiting], "has neither a result nor a checkpoint yet"),
        ([*runs, "--plot", "curves"], "--plot: curves is no picture's name"),
    ):
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in argv])
        assert end.value.code == 2 and message in capsys.readouterr().err
