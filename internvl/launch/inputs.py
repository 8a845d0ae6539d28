"""The files a finetune reads, asked for before anything is installed or loaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from internvl.errors import UserError
from internvl.json_files import read_json
from internvl.launch.settings import Settings
from internvl.patterns import expand_pattern
from internvl.repository import REPOSITORY


class Input(NamedTuple):
    """A file or folder that the meta file names: what it is (annotation, root), its path, and of which data set."""

    what: str
    path: str
    dataset: str


def check_model_and_meta(settings: Settings) -> None:
    """Check the three files that settings name.

    Raises:
        UserError: one is not there; says how to get it.
    """
    model, meta, deepspeed = settings.model, settings.meta_path, settings.deepspeed
    if not Path(model).is_dir():
        name = Path(model).name
        member = f" OpenGVLab/{name}" if name.startswith("InternVL") and name != "InternVL2-2B" else ""
        raise UserError(
            f'{model}: there is no such folder. Download the checkpoint with "bash '
            f'tools/download_pretrained.sh{member}", or '
            "try the shipped tiny base with MODEL=pretrained/InternVL2-Tiny."
        )
    if not (Path(model) / "config.json").is_file():
        raise UserError(
            f"{model}: holds no config.json, so it is not a checkpoint. Set MODEL to the folder that config.json is "
            'in, or download it again with "bash tools/download_pretrained.sh".'
        )
    if not Path(meta).is_file():
        raise UserError(
            f"{meta}: there is no such file. Set META_PATH to the JSON file that lists your data sets; copy "
            "shell/data/habitat.json to start one."
        )
    if deepspeed and not Path(deepspeed).is_file():
        raise UserError(
            f"{deepspeed}: there is no such file. Set DEEPSPEED to a file in shell/deepspeed/, or to none."
        )


def meta_inputs(meta_path: str) -> Iterator[Input]:
    """Yield what a meta file names, read only as far as that takes; the finetune script checks the rest.

    Raises:
        UserError: it is not a JSON object of data sets (``read_json``).
    """
    meta = read_json(Path(meta_path))
    if not isinstance(meta, dict) or not all(isinstance(entry, dict) for entry in meta.values()):
        raise UserError(
            f"{meta_path}: expected an object of data sets, each an object itself. Follow shell/data/habitat.json."
        )
    for dataset, entry in meta.items():
        annotations = entry.get("annotation")
        annotations = annotations if isinstance(annotations, list) else [annotations]
        for what, path in [*(("annotation", path) for path in annotations), ("root", entry.get("root"))]:
            if isinstance(path, str) and path:
                found = expand_pattern(path) if what == "annotation" else [path]
                yield from (Input(what, each, dataset) for each in found or [path])


def check_meta_inputs(meta_path: str) -> None:
    """Check that everything a meta file names is there.

    Raises:
        UserError: names the first that is not.
    """
    for found in meta_inputs(meta_path):
        if not Path(found.path).exists():
            raise UserError(
                f"{meta_path}:{found.dataset}: its {found.what} '{found.path}' is not there. Put it there, or correct "
                f"the path (paths in a meta file are relative to {REPOSITORY})."
            )
