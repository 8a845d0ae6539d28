"""How a checkpoint's pictures are cut into tiles: the settings of its training, which travel in its files."""

from pathlib import Path

from internvl.json_files import read_object
from internvl.model.config_check import CHAT, check_fields
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig

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
    check_fields(content, {name: CHAT[own] for name, own in FIELDS.items()}, f"{file}:")
    return {own: content[name] for name, own in FIELDS.items() if name in content}


def most_tiles(config: InternVLChatConfig) -> int:
    """Return the most tiles of one picture, without the thumbnail: 1 for a model trained without tiling."""
    return config.max_dynamic_patch if config.dynamic_image_size else 1
