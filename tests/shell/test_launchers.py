"""The finetune launchers: what they would run, what they refuse, and how they end."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from internvl.train.arguments import FinetuneArguments, parse_arguments
from internvl.train.reward_arguments import parse_reward_arguments

REPO = Path(__file__).resolve().parents[2]
EVERY_LAUNCHER = sorted(path.relative_to(REPO) for path in REPO.glob("shell/internvl*/**/*.sh"))
REWARD_LAUNCHERS = [path for path in EVERY_LAUNCHER if path.stem.endswith("cider")]
PREFERENCES = Path("shell/internvl2.0/habitat_2b_finetune/dpo.sh")
OF_ANSWERS = [*REWARD_LAUNCHERS, PREFERENCES]
LAUNCHERS = [path for path in EVERY_LAUNCHER if path not in OF_ANSWERS]
LORA = "shell/internvl2.0/habitat_2b_finetune/lora.sh"
COCO = "shell/internvl2.0/2nd_finetune/internvl2_2b_internlm2_1_8b_dynamic_res_2nd_finetune_lora_coco.sh"


def planned_flags(done) -> dict[str, str]:
    """The flags of the finetune command in a dry run, from name to value. No flag may come twice."""
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    words = shlex.split(done.stdout.splitlines()[-1])
    flags = words[words.index("internvl/train/internvl_chat_finetune.py") + 1 :]
    names, values = flags[::2], flags[1::2]
    assert len(names) == len(set(names)), names
    return dict(zip(names, values, strict=True)) | {
        name: value for name, _, value in (word.partition("=") for word in words) if name.startswith("--n")
    }


def assert_refused(done, *words):
    """Exit status 2 and one line on stderr."""
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


# ---- dry runs ------------------------------------------------------------------------------------

# What the trainings receive, as far as it differs from the defaults of internvl/train/arguments.py. What changes here
# changes the published recipes.
SCHEDULE = {
    "num_train_epochs": 1, "learning_rate": 4e-5, "weight_decay": 0.01, "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03, "save_steps": 200, "save_total_limit": 1,
}  # fmt: skip
LORA_RECIPE = {"freeze_llm": True, "freeze_mlp": True, "freeze_backbone": True, "use_llm_lora": 128, **SCHEDULE}
FULL_RECIPE = {"freeze_backbone": True, "save_full_model": True, **SCHEDULE}
RECIPES = {
    "habitat_2b_finetune/lora": (LORA_RECIPE, 4, 4),
    "habitat_2b_finetune/full": (FULL_RECIPE, 4, 4),
    "2nd_finetune/internvl2_2b_internlm2_1_8b_dynamic_res_2nd_finetune_lora": (LORA_RECIPE, 4, 16),
    "habitat_2b_finetune/nav_lora": (
        {**LORA_RECIPE, "share_image_prefix": True, "max_dynamic_patch": 1, "num_train_epochs": 2}, 4, 4,
    ),
    "2nd_finetune/internvl2_2b_internlm2_1_8b_dynamic_res_2nd_finetune_full": (FULL_RECIPE, 1, 16),
    "2nd_finetune/internvl2_2b_internlm2_1_8b_dynamic_res_2nd_finetune_lora_coco": (
        {**LORA_RECIPE, "share_image_prefix": True}, 4, 16,
    ),
}  # fmt: skip
# Of other members: rank 16 for own data, upstream's lengths of rows, and fewer rows at once of larger models.
MEMBERS = {
    "internvl2_1b_qwen2_0_5b": 4, "internvl2_8b_internlm2_7b": 1,
    "internvl2_5_1b": 4, "internvl2_5_2b": 4, "internvl2_5_4b": 2, "internvl2_5_8b": 1,
    "internvl3_1b": 4, "internvl3_2b": 4, "internvl3_8b": 1,
    "internvl3_5_1b": 4, "internvl3_5_2b": 4, "internvl3_5_4b": 2, "internvl3_5_8b": 1,
}  # fmt: skip
FULL_RATES = {"internvl3_1b": 1e-5, "internvl3_2b": 2e-5, "internvl3_8b": 2e-5}
for member, per_device in MEMBERS.items():
    longer = {} if member.startswith(("internvl2_1b", "internvl2_8b")) else {"max_seq_length": 8192}
    full = {**FULL_RECIPE, "learning_rate": FULL_RATES.get(member, 4e-5), **longer}
    if member.startswith("internvl3_"):
        full |= {"max_dynamic_patch": 12, "max_seq_length": 16384}
    if member.startswith("internvl3_5"):
        full |= {"packing": True, "learning_rate": 8e-5}
        del full["freeze_backbone"]
    stem = f"2nd_finetune/{member}_dynamic_res_2nd_finetune"
    RECIPES |= {
        f"{stem}_lora": ({**LORA_RECIPE, "use_llm_lora": 16, **longer}, per_device, 64 // per_device),
        f"{stem}_lora_coco": ({**LORA_RECIPE, "share_image_prefix": True}, per_device, 64 // per_device),
        f"{stem}_full": (full, 1, 16),
    }
# Follow from the machine and the name of the launcher.
OF_THE_RUN = {
    "model_name_or_path", "meta_path", "output_dir", "use_cpu", "bf16", "fp16", "deepspeed", "mixed_precision",
    "dataloader_num_workers", "dataloader_pin_memory", "distributed_state", "deepspeed_plugin", "hf_deepspeed_config",
}  # fmt: skip


def received(done) -> dict[str, object]:
    """What the finetune script makes of the flags in a dry run, without defaults and OF_THE_RUN."""
    words = shlex.split(done.stdout.splitlines()[-1])
    flags = words[words.index("internvl/train/internvl_chat_finetune.py") + 1 :]
    least = ["--model_name_or_path", "m", "--meta_path", "m", "--output_dir", "o"]
    given, default = (
        {name: value for group in parse_arguments(argv) for name, value in vars(group).items()}
        for argv in (flags, least)
    )
    return {name: given[name] for name in given if name not in OF_THE_RUN and given[name] != default[name]}


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda path: path.stem)
def test_dry_run_of_every_launcher(run, launcher):
    done = run(launcher, "--use_cpu", "True", DRY_RUN="1")
    recipe, per_device, steps = RECIPES[f"{launcher.parent.name}/{launcher.stem}"]
    batch = {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": steps}
    batch = {name: number for name, number in batch.items() if number != getattr(FinetuneArguments, name, None)}
    assert received(done) == {**recipe, **batch}
    flags = planned_flags(done)
    batch_size = int(done.stdout.partition("BATCH_SIZE ")[2].split()[0])
    assert batch_size == per_device * steps * int(flags["--nproc_per_node"])
    assert flags["--meta_path"] in done.stdout.partition("Files it would read")[2].partition("command")[0]
    for entry in json.loads((REPO / flags["--meta_path"]).read_text()).values():
        assert {"root", "annotation", "data_augment", "repeat_time", "length"} == set(entry) - {"balance"}
        assert isinstance(entry["length"], int)


@pytest.mark.parametrize("launcher", REWARD_LAUNCHERS, ids=lambda path: path.stem)
def test_a_launcher_of_a_training_on_the_score_draws_and_scores_answers(run, launcher):
    done = run(launcher, "--use_cpu", "True", "--reward", "CIDEr-D:1.0", "exact:0.5", DRY_RUN="1")
    assert done.returncode == 0 and done.stderr == ""
    words = shlex.split(done.stdout.splitlines()[-1])
    flags = words[words.index("internvl/train/internvl_chat_reward.py") + 1 :]
    model, _, training, reward = parse_reward_arguments(flags)
    assert [spec.name for spec in reward.specs()] == ["CIDEr-D", "exact"] and reward.num_samples == 5
    assert model.lora_dropout == 0 and model.freeze_llm and model.use_llm_lora == 128
    images = int(done.stdout.partition("BATCH_SIZE ")[2].split()[0])
    per_rank = training.per_device_train_batch_size * training.gradient_accumulation_steps
    assert images == per_rank * (8 if "coco" in str(training.output_dir) or "2nd" in str(launcher) else 1)


def test_the_launcher_of_preferences_trains_on_pairs(run):
    done = run(PREFERENCES, "--use_cpu", "True", "--objective", "mpo", DRY_RUN="1")
    assert done.returncode == 0 and done.stderr == ""
    words = shlex.split(done.stdout.splitlines()[-1])
    flags = words[words.index("internvl/train/internvl_chat_reward.py") + 1 :]
    model, data, _, reward = parse_reward_arguments(flags)
    assert (reward.objective, reward.beta, model.lora_dropout) == ("mpo", 0.1, 0)
    assert data.meta_path == "log/habitat/pairs/meta.json"


@pytest.mark.parametrize("launcher", [*EVERY_LAUNCHER, Path("shell/tiny/pretrain.sh")], ids=lambda path: path.stem)
def test_a_launcher_shows_its_settings_and_the_torchrun_call(launcher):
    text = (REPO / launcher).read_text()
    for name in ("GPUS", "BATCH_SIZE", "PER_DEVICE_BATCH_SIZE", "GRADIENT_ACC", "MODEL", "META_PATH", "OUTPUT_DIR"):
        assert re.search(rf"^((setting|input_path|output_path) {name} |{name}=)", text, re.MULTILINE), name
    script = "internvl_chat_reward.py" if launcher in OF_ANSWERS else "internvl_chat_finetune.py"
    assert f'torchrun --nproc_per_node="$GPUS" internvl/train/{script}' in text


def test_the_recipe_of_the_tiny_base(run):
    assert received(run("shell/tiny/pretrain.sh", "--use_cpu", "True", DRY_RUN="1")) == {
        "save_full_model": True, "max_seq_length": 1024, "weight_decay": 0.05, "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03, "grad_checkpoint": "False", "logging_steps": 10, "save_total_limit": 1,
        "per_device_train_batch_size": 32,
    }  # fmt: skip


def test_dry_run_writes_nothing(copy, run):
    before = sorted(copy.rglob("*"))
    planned_flags(run(LORA, cwd=copy, DRY_RUN="1", PYTHONDONTWRITEBYTECODE="1"))
    assert sorted(copy.rglob("*")) == before


def test_dry_run_before_pytorch_is_installed(copy, run):
    (copy / "internvl/device.py").write_text("raise SystemExit(2)")
    done = run(LORA, cwd=copy, DRY_RUN="1")
    assert done.returncode == 0
    assert done.stderr == "PyTorch is not installed yet: this is the plan for a CPU.\n"
    assert "--use_cpu True" in done.stdout


def test_design_defaults(copy, run):
    habitat = run(copy / LORA, DRY_RUN="1")
    assert planned_flags(habitat)["--output_dir"] == "log/habitat/lora_annots_1"
    assert "BATCH_SIZE 16 = 4 rows per device x 1 process x 1 node x 4 accumulation steps" in habitat.stdout
    coco = run(copy / COCO, DRY_RUN="1")
    assert planned_flags(coco)["--output_dir"] == f"work_dirs/internvl_chat_v2_0/{Path(COCO).stem}"
    assert "BATCH_SIZE 512 = 4 rows per device x 8 processes x 1 node x 16 accumulation steps" in coco.stdout
    assert "data/coco/annotations/coco_karpathy_train_567k.jsonl (missing)" in coco.stdout
    assert "data/habitat/train.jsonl  [habitat]" in habitat.stdout


def test_flags_win_over_settings(copy, run):
    done = run(
        copy / LORA,
        "--per-device-train-batch-size=2",
        "--gradient_accumulation_steps",
        "3",
        "--output_dir",
        "elsewhere",
        "--lora_dropout",
        "0.0",
        "--deepspeed",
        "none",
        "--bf16",
        "False",
        cwd=copy,
        DRY_RUN="1",
        OUTPUT_DIR="from_environment",
    )
    flags = planned_flags(done)
    assert "BATCH_SIZE 6 = 2 rows per device x 1 process x 1 node x 3 accumulation steps" in done.stdout
    assert flags["--per_device_train_batch_size"] == "2"
    assert flags["--output_dir"] == "elsewhere"
    assert flags["--lora_dropout"] == "0.0"
    assert flags["--bf16"] == "False"
    assert not {"--fp16", "--deepspeed"} & set(flags)


def test_the_device_decides_precision_and_deepspeed(copy, run):
    def flags(line, *typed, **settings):
        (copy / "internvl/device.py").write_text(f"print('{line}')")
        return planned_flags(run(copy / LORA, *typed, cwd=copy, DRY_RUN="1", **settings))

    gpu, cpu = flags("cuda bf16 2"), flags("cpu fp32 0")
    assert (gpu["--bf16"], "--deepspeed" in gpu) == ("True", False)  # LoRA on one node
    assert (cpu["--bf16"], cpu["--use_cpu"], "--deepspeed" in cpu) == ("False", "True", False)
    assert flags("cuda bf16 2", "--use_cpu", "True") == cpu
    assert "--deepspeed" not in flags("cuda fp16 2", DEEPSPEED="", PRECISION="fp16")


def test_several_nodes(copy, run):
    assert_refused(run(copy / LORA, DRY_RUN="1", NNODES="2"), "MASTER_ADDR: not set", "NNODES is 2")
    assert_refused(run(copy / LORA, DRY_RUN="1", NODE_RANK="1"), "NODE_RANK", "'1'")
    plan = run(copy / LORA, DRY_RUN="1", NNODES="2", NODE_RANK="1", MASTER_ADDR="10.0.0.1")
    for word in ("--nnodes=2", "--node_rank=1", "--master_addr=10.0.0.1", "--master_port=34229"):
        assert word in plan.stdout


# ---- paths ---------------------------------------------------------------------------------------


def test_paths_are_those_of_the_folder_where_the_command_was_typed(copy, run, tmp_path):
    here = tmp_path / "here and there"
    (here / "my model").mkdir(parents=True)
    done = run(
        copy / LORA,
        cwd=here,
        DRY_RUN="1",
        MODEL="my model",
        META_PATH="shell/data/habitat.json",
        OUTPUT_DIR="o",
    )
    flags = planned_flags(done)
    assert flags["--model_name_or_path"] == str(here / "my model")
    assert flags["--meta_path"] == "shell/data/habitat.json", "not there, so the one of the repository"
    assert flags["--output_dir"] == str(here / "o")
    assert planned_flags(run(copy / LORA, cwd=here, DRY_RUN="1"))["--output_dir"] == "log/habitat/lora_annots_1"


def test_launcher_through_a_symlink(copy, run, tmp_path):
    link = tmp_path / "finetune here"
    link.symlink_to(copy / LORA)
    assert planned_flags(run(link, cwd=tmp_path, DRY_RUN="1"))["--use_llm_lora"] == "128"


# ---- refusals ------------------------------------------------------------------------------------


def test_refusals(copy, run, tmp_path):
    assert_refused(run(copy / LORA, BATCH_SIZE="10"), "10 / 4 is not whole", "BATCH_SIZE=8 or BATCH_SIZE=12")
    assert_refused(run(copy / LORA, GPUS="two"), "GPUS: ", "'two'")
    assert_refused(run(copy / LORA, GPUS="4"), "GPUS: 4 asked for", "has 2", "GPUS=2")
    assert_refused(run(copy / LORA, "--output_dir"), "--output_dir: has no value")
    missing = run(copy / LORA, MODEL="pretrained/none")
    assert_refused(missing, "pretrained/none: ", "tools/download_pretrained.sh", "InternVL2-Tiny")
    (copy / "empty").mkdir()
    assert_refused(run(copy / LORA, "--model_name_or_path", "empty", cwd=copy), "empty: holds no config.json")
    assert_refused(run(copy / LORA, META_PATH="none.json"), "none.json: there is no such file")
    assert_refused(run(copy / LORA, DEEPSPEED="zero9.json"), "zero9.json: there is no such file")
    (copy / "file").touch()
    assert_refused(run(copy / LORA, OUTPUT_DIR="file/out", cwd=copy), "file/out: cannot be written")
    assert not (copy / "log").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a": {"annotation": "no.jsonl"}}', [":a: its annotation 'no.jsonl' is not there"]),
        (
            '{"a": {"root": "no folder/", "annotation": ["meta.json"]}}',
            [":a: its root 'no folder/' is not there"],
        ),
        ('{\n"a": }', ["meta.json:2: is not valid JSON"]),
        ("[1]", ["meta.json: expected an object"]),
    ],
)
def test_meta_refusals(copy, run, content, words):
    (copy / "meta.json").write_text(content)
    assert_refused(run(copy / LORA, META_PATH="meta.json", cwd=copy), *words)


# ---- real runs, with a stub for the finetune script ----------------------------------------------


@pytest.mark.parametrize(("do", "status"), [("exit 0", 0), ("exit 2", 2), ("exit 7", 7), ("die", 128 + 9)])
def test_exit_status_and_log(copy, run, do, status):
    output = copy / "out $(touch pwned) \"q\" 'q'"
    done = run(copy / LORA, "--do", do, cwd=copy, OUTPUT_DIR=output.name, DEEPSPEED="none")
    log = (output / "training_log.txt").read_text()
    assert done.returncode == status, log
    assert sorted((done.stdout + done.stderr).splitlines()) == sorted(log.splitlines())
    assert "stub on stdout\n" in done.stdout and "stub on stderr\n" in done.stderr
    assert "BATCH_SIZE 16 = " in log
    assert "Traceback" not in log
    assert not list(copy.glob("**/pwned"))
    argv = json.loads((copy / "argv.json").read_text())
    assert argv[argv.index("--output_dir") + 1] == output.name
    if do == "exit 2":  # the user's mistake: nothing after the script's own message
        assert done.stderr == "stub on stderr\n"


def test_log_is_appended_to(copy, run):
    for _ in range(2):
        run(copy / LORA, "--output_dir=twice", cwd=copy)
    assert (copy / "twice/training_log.txt").read_text().count("stub on stdout") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_training(copy, environment, number):
    log = copy / "out/training_log.txt"
    with subprocess.Popen(
        ["bash", LORA, "--do", "sleep"],
        cwd=copy,
        env=environment(OUTPUT_DIR="out"),
        stdout=subprocess.DEVNULL,
        # Tests that run in the background of a script have SIGINT ignored, which a shell cannot undo.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as launcher:
        deadline = time.monotonic() + 60
        while not (log.exists() and "stub on stderr" in log.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        launcher.send_signal(number)
        assert launcher.wait(timeout=50) == 128 + number
    assert f"stopped by {number.name}" in log.read_text()


# ---- the real finetune script --------------------------------------------------------------------


def test_unknown_flag_is_refused_by_the_finetune_script(run, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "meta.json").write_text("{}")
    settings = {
        "MODEL": str(tmp_path),
        "META_PATH": str(tmp_path / "meta.json"),
        "OUTPUT_DIR": str(tmp_path / "out"),
    }
    done = run(LORA, "--no_such_flag", "1", GPUS="1", **settings)
    assert done.returncode == 2
    assert "--no_such_flag" in done.stderr.splitlines()[-1], "the finetune script's own message comes last"
    assert "Traceback" not in done.stdout + done.stderr


def test_an_old_python_beside_a_newer_one_is_not_in_the_way(copy, environment, tmp_path):
    """Without an environment yet, python3 may be too old for the early checks where python3.12 is there to install."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "readlink", "mkdir", "flock", "rm", "cat"):
        if shutil.which(name):
            (tools / name).symlink_to(shutil.which(name))
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tools / "python3.12").write_text(
        '#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; *print*) echo python3.12;; esac\nexit 0\n'
    )
    for name in ("python3", "python3.12"):
        (tools / name).chmod(0o755)
    settings = environment(PATH=str(tools))
    del settings["VIRTUAL_ENV"], settings["INTERNVL_SKIP_INSTALL"]
    done = subprocess.run(["bash", LORA], cwd=copy, env=settings, capture_output=True, text=True, timeout=60)
    assert_refused(done, "cannot make virtual environments", "apt install python3.12-venv")
