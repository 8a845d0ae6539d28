"""evaluate.sh: its table of tasks, its refusals, and the command it runs."""

import shlex

import pytest

TASKS = {
    "caption-coco": ["--datasets", "coco"],
    "caption-flickr30k": ["--datasets", "flickr30k"],
    "caption-nocaps": ["--datasets", "nocaps"],
    "caption-habitat": ["--datasets", "habitat"],
    "caption-my set": ["--datasets", "my set"],
    "caption": ["--datasets", "present"],
    "caption-custom": [],
    "caption-train": [],
}


def command(done):
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("task", "datasets"), TASKS.items())
def test_task_table(copy, run, task, datasets):
    done = run(copy / "evaluate.sh", "pretrained/InternVL2-2B", task, "--dynamic", "--max-num", "6", DRY_RUN="1")
    assert command(done)[1:] == [
        "eval/caption/evaluate_caption.py",
        *["--checkpoint", "pretrained/InternVL2-2B", *datasets, "--dynamic", "--max-num", "6"],
    ]


def test_processes(copy, run):
    several = run(copy / "evaluate.sh", "pretrained/InternVL2-2B", "caption", DRY_RUN="1", GPUS="2")
    assert "--nproc_per_node=2" in command(several)
    auto = run(copy / "evaluate.sh", "pretrained/InternVL2-2B", "caption", "--auto", DRY_RUN="1", GPUS="2")
    assert command(auto)[1] == "eval/caption/evaluate_caption.py"
    assert auto.stderr == "GPUS=2 is not used: --auto runs one process.\n"
    too_many = run(copy / "evaluate.sh", "pretrained/InternVL2-2B", "caption", GPUS="3")
    assert too_many.returncode == 2
    assert too_many.stderr.startswith("GPUS: 3 asked for, and this machine has 2. Set GPUS=2")


def test_paths_from_another_folder(copy, run, tmp_path):
    here = tmp_path / "here $(x)"
    (here / "merged").mkdir(parents=True)
    done = run(copy / "evaluate.sh", "merged", "caption", "--out-dir", "scores", cwd=here, DRY_RUN="1")
    words = command(done)
    assert words[words.index("--checkpoint") + 1] == str(here / "merged")
    assert words[words.index("--out-dir") + 1] == str(here / "scores")
    (here / "val.jsonl").touch()
    flags = ["--annotation=val.jsonl", "--root", "data", "--dynamic"]
    words = command(run(copy / "evaluate.sh", "merged", "caption-custom", *flags, cwd=here, DRY_RUN="1"))
    assert words[-5:] == ["--annotation", str(here / "val.jsonl"), "--root", "data", "--dynamic"]
    words = command(run(copy / "evaluate.sh", "merged", "caption", "--base", "merged", cwd=here, DRY_RUN="1"))
    assert words[words.index("--base") + 1] == str(here / "merged")
    words = command(run(copy / "evaluate.sh", "pretrained/InternVL2-2B", "caption", cwd=here, DRY_RUN="1"))
    assert words[words.index("--checkpoint") + 1] == "pretrained/InternVL2-2B"


def test_runs_the_evaluation_and_keeps_its_status(copy, run):
    script = copy / "eval/caption/evaluate_caption.py"
    script.parent.mkdir(parents=True)
    script.write_text("import sys; print(sys.argv[1:]); sys.exit(5)")
    for gpus in ("1", "2"):
        done = run(copy / "evaluate.sh", "pretrained/InternVL2-2B", "caption-habitat", GPUS=gpus)
        assert done.returncode == 5
        assert "'--datasets', 'habitat'" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "caption-coco"], ["nowhere: there is no such folder", "tools/download_pretrained.sh"]),
        (["pretrained/InternVL2-2B", "vqa"], ["vqa: there is no such task", "caption-NAME", "caption-train"]),
        (["pretrained/InternVL2-2B"], ["TASK: missing", "caption-NAME", "caption-train"]),
        (["pretrained/InternVL2-2B", "caption", "--out-dir"], ["--out-dir: has no value"]),
    ],
)
def test_refusals(copy, run, arguments, words):
    done = run(copy / "evaluate.sh", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words)


def test_usage(copy, run):
    bare, asked = run(copy / "evaluate.sh"), run(copy / "evaluate.sh", "-h")
    assert (bare.returncode, asked.returncode) == (2, 0)
    assert bare.stderr == asked.stdout
    assert all(task in asked.stdout for task in ("caption-NAME", "caption:", "caption-custom", "caption-train"))
