"""The README's commands, run as they stand there, in a copy of the repository laid out as a user's."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.end_to_end.launching import run_launcher

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
# What the two newcomer commands do is the subject of test_quickstart and of whoever runs these tests.
NEWCOMER = ["bash shell/quickstart.sh", "bash tests/run.sh"]
# The network is not there in a test; what the script does after the download is run by the next line of the README.
NEEDS_NETWORK = ["bash tools/download_pretrained.sh"]
# A full epoch of the shipped set is the quickstart's business: here each training takes a few steps.
SHORTER = {"lora.sh": " --max_steps 3 --save_strategy no", "lora_coco.sh": " --save_strategy no"}
# The finetune on COCO, further up in the README, needs the files that this makes: they are laid out from the start.
REPLACING = {"dataset_coco.json": " --overwrite"}


def copy_repository(folder: Path) -> Path:
    """Copy the project's files: what git tracks, and what is new and not ignored."""
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True
    )
    if tracked.returncode:
        pytest.skip("needs git, to know which files belong to the project")
    for name in tracked.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, folder / name)
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
    """Put files to convert there: LLaVA rows with their pictures, and the ten COCO pictures as Karpathy lists them."""
    names = sorted(path.name for path in (folder / "data" / "coco" / "val2014").iterdir())
    (folder / "data" / "mine").mkdir()
    for name in names:
        shutil.copyfile(folder / "data" / "coco" / "val2014" / name, folder / "data" / "mine" / name)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A room."}]
    (folder / "llava.json").write_text(json.dumps([{"image": name, "conversations": turns} for name in names]))
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


def test_the_readme_still_has_the_documented_commands():
    assert [command for command in COMMANDS if command in NEWCOMER] == NEWCOMER
    assert sum("evaluate.sh" in command for command in COMMANDS) == 5
    assert sum(command.startswith("cp ") for command in COMMANDS) == 2


def test_every_command_of_the_readme_works_in_order(user_copy):
    commands = [command for command in COMMANDS if command not in NEWCOMER + NEEDS_NETWORK]
    assert len(commands) >= 12
    for command in commands:
        for end, flags in (SHORTER | REPLACING).items():
            if command.endswith(end):
                command += flags
        if "caption-habitat" in command:
            command += " --limit 4"
        process = shell(command, user_copy)
        assert process.returncode == 0, f"{command}\n{process.stdout[-1500:]}\n{process.stderr[-3000:]}"
    merged = user_copy / "log_merged" / "habitat" / "lora_annots_1"
    picture = next((user_copy / "data" / "coco" / "val2014").glob("*.jpg"))
    script = README.split("```python\n")[1].split("```")[0]
    script = script.replace('"log_merged/habitat/lora_annots_1"', repr(str(merged))).replace("photo.jpg", str(picture))
    process = subprocess.run([sys.executable, "-c", script], cwd=user_copy.parent, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_the_quickstart_works_on_a_small_set(tmp_path, tiny_base):
    folder = copy_repository(tmp_path / "repository")
    shutil.rmtree(folder / "pretrained" / "InternVL2-Tiny", ignore_errors=True)
    shutil.copytree(tiny_base, folder / "pretrained" / "InternVL2-Tiny")
    habitat = folder / "data" / "habitat"
    rows = (habitat / "train.jsonl").read_text().splitlines(keepends=True)
    (habitat / "train.jsonl").write_text("".join(rows[:64]))
    keep_first_pictures(habitat, 6)
    process = run_launcher("shell/quickstart.sh", cwd=folder)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    summary = json.loads((folder / "log" / "quickstart" / "summary.json").read_text())
    assert summary["captions_identical"] is True
    assert {"base", "adapter", "merged", "random_caption"} < set(summary)
    assert all("CIDEr" in summary[name] for name in ("base", "adapter", "merged", "random_caption"))
    assert {"install", "finetune", "merge"} < set(summary["seconds"])
    assert "<img" in (folder / "log" / "quickstart" / "report.html").read_text()


def keep_first_pictures(habitat: Path, number: int) -> None:
    """Cut the val set down to its first pictures."""
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


def test_the_readmes_json_examples_are_accepted(tmp_path):
    from internvl.data.annotation import AnnotationFile
    from internvl.data.meta import read_entry

    meta, rows = (block.strip() for block in re.findall(r"```json\n(.*?)```", README, re.DOTALL))
    [(name, entry)] = json.loads(meta).items()
    entry["root"], entry["annotation"] = str(tmp_path), str(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text(rows)
    assert read_entry(Path("meta.json"), name, entry).length == 5750
    file = AnnotationFile(tmp_path / "rows.jsonl")
    assert [len(file.row(index).images) for index in range(len(file))] == [0, 1, 2, 0]
    assert file.row(3).video == "a.mp4"


def test_the_worked_example_of_the_evaluation_is_read_as_it_says(tmp_path):
    from internvl.evaluation.datasets import ENTRY_KEYS, read_custom_set

    text = (REPOSITORY / "eval" / "caption" / "README.md").read_text(encoding="utf-8")
    rows, short, whole = (block.strip() for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL))
    (tmp_path / "val.jsonl").write_text(rows)
    references = read_custom_set(tmp_path / "val.jsonl", tmp_path).references()
    assert list(references.values()) == [["A white stove.", "A stove with four plates."], ["Metal."], ["A whisk."]]
    for entry in (short, whole):
        assert json.loads(entry)["kitchen"].keys() <= ENTRY_KEYS
