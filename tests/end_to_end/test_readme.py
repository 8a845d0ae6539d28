"""The commands of the README and of docs/, run as they stand there, in a copy of the repository as a user has it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.documents import blocks_of, commands_of
from tests.end_to_end.launching import run_launcher

README = REPOSITORY / "README.md"
DOCS = sorted((REPOSITORY / "docs").glob("*.md"))
# What the two newcomer commands do is the subject of test_quickstart and of whoever runs these tests.
NEWCOMER = ["bash shell/quickstart.sh", "bash tests/run.sh"]
# The network is not there in a test; what the script does after the download is run by the next lines of
# docs/training.md.
NEEDS_NETWORK = ["bash tools/download_pretrained.sh", 'pip install "transformers[serving]"']
# tests/serving/run.sh runs these, in an environment with vLLM and transformers serve.
NEEDS_SERVER = ["vllm serve ", "transformers serve ", "python tools/check_serving.py "]
# A full epoch of the shipped set is the quickstart's business: here each training takes a few steps.
SHORTER = {"lora.sh": " --max_steps 3 --save_strategy no", "lora_coco.sh": " --save_strategy no"}
# The finetune on COCO needs the files that this makes: they are laid out from the start.
REPLACING = {"dataset_coco.json": " --overwrite"}
# What users of the original type, word for word; some page has to have each.
PUBLISHED = [
    "GPUS=1 PER_DEVICE_BATCH_SIZE=4 bash shell/internvl2.0/habitat_2b_finetune/lora.sh",
    "GPUS=1 PER_DEVICE_BATCH_SIZE=4 bash shell/internvl2.0/2nd_finetune/"
    "internvl2_2b_internlm2_1_8b_dynamic_res_2nd_finetune_lora_coco.sh",
    "GPUS=1 bash evaluate.sh pretrained/InternVL2-2B caption-coco --dynamic --auto",
    "PYTHONPATH=$PYTHONPATH:$(pwd) python tools/merge_lora.py log/habitat/lora_annots_1/ "
    "log_merged/habitat/lora_annots_1",
    "cp pretrained/InternVL2-2B/*.py log_merged/habitat/lora_annots_1",
    "cp pretrained/InternVL2-2B/config.json log_merged/habitat/lora_annots_1",
]
# What commands of docs/ start from, and the command that makes it.
TRAINED, MERGED = Path("log/habitat/lora_annots_1"), Path("log_merged/habitat/lora_annots_1")
MADE_BY = {TRAINED: PUBLISHED[0], MERGED: PUBLISHED[3]}


def copy_repository(folder: Path) -> Path:
    """Copy the project's files: what git tracks, and what is new and not ignored."""
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True
    )
    if tracked.returncode:
        pytest.skip("needs git, to know which files belong to the project")
    for name in tracked.stdout.splitlines():
        if (REPOSITORY / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, folder / name, follow_symlinks=False)
    return folder


@pytest.fixture(scope="module")
def user_copy(tmp_path_factory, tiny_base):
    """A copy of the project, a small base as pretrained/InternVL2-2B, and ten rows of COCO-shaped data."""
    folder = copy_repository(tmp_path_factory.mktemp("user") / "repository")
    shutil.copytree(tiny_base, folder / "pretrained" / "InternVL2-2B")
    lay_out_coco(folder)
    lay_out_inputs(folder)
    return folder


def lay_out_coco(folder: Path) -> None:
    """Give ten habitat views the names of COCO files, with the annotation files of the original's users."""
    coco = folder / "data" / "coco"
    (coco / "annotations").mkdir(parents=True)
    (coco / "val2014").mkdir()
    truth = json.loads((REPOSITORY / "data" / "habitat" / "val_gt.json").read_text())
    wanted = [image["id"] for image in truth["images"]][:10]
    names = {image_id: f"val2014/COCO_val2014_{image_id:012d}.jpg" for image_id in wanted}
    for image_id, name in names.items():
        source = next((REPOSITORY / "data" / "habitat" / "images" / "val").glob(f"*_{image_id:012d}.jpg"))
        shutil.copyfile(source, coco / name)
    annotations = [entry for entry in truth["annotations"] if entry["image_id"] in names]
    (coco / "annotations" / "coco_karpathy_test.json").write_text(json.dumps([{"image": n} for n in names.values()]))
    (coco / "annotations" / "coco_karpathy_test_gt.json").write_text(
        json.dumps({"images": [{"id": image_id} for image_id in wanted], "annotations": annotations})
    )
    rows = [
        {
            "id": number,
            "image": names[entry["image_id"]],
            "conversations": [
                {"from": "human", "value": "<image>\nProvide a one-sentence caption for the provided image."},
                {"from": "gpt", "value": entry["caption"]},
            ],
        }
        for number, entry in enumerate(annotations)
    ]
    (coco / "annotations" / "coco_karpathy_train_567k.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )


def lay_out_inputs(folder: Path) -> None:
    """Put files to convert there: rows of other tools with their images, and the COCO images as Karpathy has them."""
    names = sorted(path.name for path in (folder / "data" / "coco" / "val2014").iterdir())
    (folder / "data" / "mine").mkdir()
    for name in names:
        shutil.copyfile(folder / "data" / "coco" / "val2014" / name, folder / "data" / "mine" / name)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A room."}]
    messages = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A room."}]
    (folder / "llava.json").write_text(json.dumps([{"image": name, "conversations": turns} for name in names]))
    (folder / "sharegpt.json").write_text(json.dumps([{"images": [name], "conversations": turns} for name in names]))
    swift = [{"images": [name], "messages": messages} for name in names]
    (folder / "swift.jsonl").write_text("".join(json.dumps(row) + "\n" for row in swift))
    images = [
        {
            "cocoid": int(name[-16:-4]),
            "filepath": "val2014",
            "filename": name,
            "split": "restval" if number % 2 else "test",
            "sentences": [{"raw": f"A room with {number} chairs."}, {"raw": "A room with windows and a door."}],
        }
        for number, name in enumerate(names)
    ]
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images}))


def shell(command: str, folder: Path) -> subprocess.CompletedProcess:
    (folder.parent / "command.sh").write_text(f"set -eo pipefail\nexport PATH={sys.prefix}/bin:$PATH\n{command}\n")
    return run_launcher(str(folder.parent / "command.sh"), cwd=folder)


def run_command(command: str, folder: Path) -> None:
    """Run a command as it stands in a document, but for what makes it shorter."""
    for end, flags in (SHORTER | REPLACING).items():
        if command.endswith(end):
            command += flags
    if "caption-habitat" in command:
        command += " --limit 4"
    process = shell(command, folder)
    assert process.returncode == 0, f"{command}\n{process.stdout[-1500:]}\n{process.stderr[-3000:]}"


def runnable(file: Path) -> list[str]:
    """The commands of a document that need neither the network nor a server."""
    return [
        command
        for command in commands_of(file)
        if command not in NEWCOMER + NEEDS_NETWORK and not command.startswith(tuple(NEEDS_SERVER))
    ]


def test_the_published_commands_are_documented():
    commands = [command for file in [README, *DOCS] for command in commands_of(file)]
    assert [command for command in commands_of(README) if command in NEWCOMER] == NEWCOMER
    assert [command for command in PUBLISHED if command not in commands] == []
    unused = [skipped for skipped in NEEDS_NETWORK if skipped not in commands]
    unused += [start for start in NEEDS_SERVER if not any(command.startswith(start) for command in commands)]
    assert unused == []


def test_every_command_of_the_readme_works_in_order(user_copy):
    commands = runnable(README)
    assert len(commands) >= 6
    for command in commands:
        run_command(command, user_copy)
    image = next((user_copy / "data" / "coco" / "val2014").glob("*.jpg"))
    [script] = blocks_of(README, "python")
    script = script.replace(f'"{MERGED}"', repr(str(user_copy / MERGED))).replace("photo.jpg", str(image))
    process = subprocess.run([sys.executable, "-c", script], cwd=user_copy.parent, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@pytest.mark.slow
def test_every_command_of_the_docs_works(user_copy):
    for folder, command in MADE_BY.items():  # unless the README's test has run in this copy
        if not (user_copy / folder).is_dir():
            run_command(command, user_copy)
    commands = [command for file in DOCS for command in runnable(file)]
    assert len(commands) >= 12
    for command in commands:
        run_command(command, user_copy)
    for name in ("from_swift", "from_sharegpt"):
        assert len((user_copy / "data" / "mine" / f"{name}.jsonl").read_text().splitlines()) == 10


@pytest.mark.slow
def test_the_quickstart_works_on_a_small_set(tmp_path, tiny_base):
    folder = copy_repository(tmp_path / "repository")
    shutil.rmtree(folder / "pretrained" / "InternVL2-Tiny", ignore_errors=True)
    shutil.copytree(tiny_base, folder / "pretrained" / "InternVL2-Tiny")
    habitat = folder / "data" / "habitat"
    rows = (habitat / "train.jsonl").read_text().splitlines(keepends=True)
    (habitat / "train.jsonl").write_text("".join(rows[:64]))
    keep_first_images(habitat, 6)
    process = run_launcher("shell/quickstart.sh", cwd=folder)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    summary = json.loads((folder / "log" / "quickstart" / "summary.json").read_text())
    assert summary["captions_identical"] is True
    assert {"base", "adapter", "merged", "random_caption"} < set(summary)
    assert all("CIDEr" in summary[name] for name in ("base", "adapter", "merged", "random_caption"))
    assert {"install", "finetune", "merge"} < set(summary["seconds"])
    assert "<img" in (folder / "log" / "quickstart" / "report.html").read_text()


def keep_first_images(habitat: Path, number: int) -> None:
    """Cut the val set down to its first images."""
    images = json.loads((habitat / "val.json").read_text())[:number]
    truth = json.loads((habitat / "val_gt.json").read_text())
    truth["images"] = truth["images"][:number]
    kept = {image["id"] for image in truth["images"]}
    truth["annotations"] = [entry for entry in truth["annotations"] if entry["image_id"] in kept]
    (habitat / "val.json").write_text(json.dumps(images))
    (habitat / "val_gt.json").write_text(json.dumps(truth))
    for file in (habitat / "images" / "val").glob("*.jpg"):
        if int(file.stem.rsplit("_", 1)[-1]) not in kept:
            file.unlink()
