"""How a checkpoint's images are cut into tiles: the settings of its training, which travel in its files."""

import logging
from pathlib import Path

from internvl.json_files import read_object
from internvl.model.config_schema import PROCESSOR
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.schema import validate

logger = logging.getLogger(__name__)
_WARNED: set[Path] = set()
PREPROCESSOR_CONFIG = "preprocessor_config.json"
# Field of the image processor's file → field of config.json. A finetune may change each of them.
FIELDS = {
    "image_size": "force_image_size",
    "dynamic_image_size": "dynamic_image_size",
    "use_thumbnail": "use_thumbnail",
    "min_dynamic_patch": "min_dynamic_patch",
    "max_dynamic_patch": "max_dynamic_patch",
}


def processor_settings(config: InternVLChatConfig) -> dict:
    """Return the settings of the image processor of a checkpoint."""
    return {name: getattr(config, "image_size" if name == "image_size" else own) for name, own in FIELDS.items()}


def read_tiling(folder: Path) -> dict:
    """Return the fields of ``config.json`` that the folder's image processor settles, empty without one of ours.

    That file is the one to trust: it is written by the training or the merge, while ``config.json`` may be the base's,
    copied over it as the documentation of the original says.

    Raises:
        UserError: the file is damaged, or holds values that no model has.
    """
    file = folder / PREPROCESSOR_CONFIG
    if not file.is_file():
        return {}
    content = read_object(file, "Restore the file, or remove it")
    if content.get("image_processor_type") != "InternVLChatImageProcessor":
        return {}  # the published one, of CLIP, says nothing about tiles
    validate(PROCESSOR, content, file)
    tiling = {own: content[name] for name, own in FIELDS.items() if name in content}
    if (folder / "config.json").is_file():
        _warn_of_another(tiling, read_object(folder / "config.json", "Restore the file"), file)
    return tiling


def _warn_of_another(tiling: dict, config: dict, file: Path) -> None:
    """Say once for each folder where its ``config.json`` names other tiles than the image processor's ``file``."""
    differing = [
        f"{own} {config[own]} there, {value} here"
        for own, value in tiling.items()
        if config.get(own) is not None and config[own] != value
    ]
    if differing and file not in _WARNED:
        _WARNED.add(file)
        logger.warning(
            "%s: differs from config.json beside it (%s). What is here is used; a server may use the other. Make them "
            "equal.",
            file,
            "; ".join(differing),
        )


def most_tiles(config: InternVLChatConfig) -> int:
    """Return the most tiles of one image, without the thumbnail: 1 for a model trained without tiling."""
    return config.max_dynamic_patch if config.dynamic_image_size else 1
