"""What makes a folder of weights a checkpoint: config with auto_map, the closed model files, processor, generation."""

import json
import shutil
from pathlib import Path

from internvl.json_files import write_json
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig

MODEL_CODE = Path(__file__).parent / "internvl_chat"
AUTO_MAP = {
    "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
    "AutoModel": "modeling_internvl_chat.InternVLChatModel",
    "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
}
PROCESSOR_AUTO_MAP = {
    "AutoImageProcessor": "image_processing_internvl_chat.InternVLChatImageProcessor",
    "AutoProcessor": "processing_internvl_chat.InternVLChatProcessor",
}


def model_code_files() -> list[Path]:
    """Return the closed model files that travel with a checkpoint."""
    return sorted(file for file in MODEL_CODE.glob("*.py") if file.name != "__init__.py")


def write_model_files(folder: str | Path, config: InternVLChatConfig) -> None:
    """Put everything beside the weights that ``AutoModel`` and ``AutoProcessor`` need, for any working directory.

    ``config.json`` must be there already; its ``auto_map`` is pointed at the files.
    """
    folder = Path(folder)
    for file in model_code_files():
        shutil.copyfile(file, folder / file.name)
    config_file = folder / "config.json"
    content = json.loads(config_file.read_text(encoding="utf-8"))
    needed = {**content, "auto_map": AUTO_MAP, "architectures": ["InternVLChatModel"]}
    if needed != content:
        write_json(config_file, needed)
    tiler = {
        "image_size": config.image_size,
        "min_dynamic_patch": config.min_dynamic_patch,
        "max_dynamic_patch": config.max_dynamic_patch,
        "dynamic_image_size": config.dynamic_image_size,
        "use_thumbnail": config.use_thumbnail,
    }
    write_json(
        folder / "preprocessor_config.json",
        {"image_processor_type": "InternVLChatImageProcessor", "auto_map": PROCESSOR_AUTO_MAP, **tiler},
    )
    write_json(
        folder / "processor_config.json",
        {
            "processor_class": "InternVLChatProcessor",
            "auto_map": PROCESSOR_AUTO_MAP,
            "num_image_token": config.num_image_token,
            "template": config.template,
        },
    )
