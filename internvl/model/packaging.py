"""What makes a folder of weights a checkpoint: model files, tokenizer, chat template, processor, generation config.

Written so that transformers 4.57 to 5.24 and the servers built on them read it.
"""

import json
import os
import shutil
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from internvl.json_files import read_object, write_json
from internvl.model.chat_template import chat_template
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.conversation import TEMPLATES, get_conv_template
from internvl.model.tiling import PREPROCESSOR_CONFIG, processor_settings

MODEL_CODE = Path(__file__).parent / "internvl_chat"
GENERATION_CONFIG = "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
AUTO_MAP = {
    "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
    "AutoModel": "modeling_internvl_chat.InternVLChatModel",
    "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
}
PROCESSOR_AUTO_MAP = {
    "AutoImageProcessor": "image_processing_internvl_chat.InternVLChatImageProcessor",
    "AutoProcessor": "processing_internvl_chat.InternVLChatProcessor",
}
# What transformers 5 writes into tokenizer_config.json and nobody reads: where it once lay, and names of its classes.
NOT_SETTINGS = (
    *("backend", "is_local", "local_files_only", "processor_class", "auto_map", "added_tokens_decoder"),
    *("extra_special_tokens", "model_specific_special_tokens"),
)


def model_code_files() -> list[Path]:
    """Return the closed model files that travel with a checkpoint."""
    return sorted(file for file in MODEL_CODE.glob("*.py") if file.name != "__init__.py")


def write_model_files(folder: str | Path, config: InternVLChatConfig) -> None:
    """Put everything beside the weights that ``AutoModel`` and ``AutoProcessor`` need, for any working directory.

    ``config.json`` must be there already; its ``auto_map`` is pointed at the files.
    """
    folder = Path(folder)
    for file in model_code_files():
        if not (folder / file.name).exists() or not os.path.samefile(file, folder / file.name):
            shutil.copyfile(file, folder / file.name)
    config_file = folder / "config.json"
    content = json.loads(config_file.read_text(encoding="utf-8"))
    needed = {**content, "auto_map": AUTO_MAP, "architectures": ["InternVLChatModel"]}
    if "dtype" in needed:
        needed["torch_dtype"] = needed["dtype"]  # its name before transformers 4.56
    if needed != content:
        write_json(config_file, needed)
    write_processor_files(folder, config)


def write_processor_files(folder: Path, config: InternVLChatConfig) -> None:
    """Write how images are cut and prompts rendered, for ``AutoProcessor``."""
    write_json(
        folder / PREPROCESSOR_CONFIG,
        {
            "image_processor_type": "InternVLChatImageProcessor",
            "auto_map": PROCESSOR_AUTO_MAP,
            **processor_settings(config),
        },
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


def write_tokenizer(
    folder: str | Path,
    tokenizer: PreTrainedTokenizerFast,
    template: str,
    *,
    named_tokens: dict[str, str] | None = None,
) -> None:
    """Write a tokenizer with its chat template, readable by transformers 4 and 5.

    Args:
        folder: where to.
        tokenizer: what to write.
        template: the chat template, in Jinja; it goes into a file of its own and, for readers older than that, into
            ``tokenizer_config.json``.
        named_tokens: tokens that a processor of transformers asks its tokenizer for, by name.
    """
    folder = Path(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    of_a_processor = content.get("model_specific_special_tokens") or {}
    content = {name: value for name, value in content.items() if name not in (*NOT_SETTINGS, *of_a_processor)}
    # TokenizersBackend, and a list called extra_special_tokens, exist in transformers 5 only.
    content["tokenizer_class"] = "PreTrainedTokenizerFast"
    named = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token}
    content["additional_special_tokens"] = [
        token.content
        for _, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and token.content not in named
    ]
    if named_tokens:
        content["extra_special_tokens"] = named_tokens
    content["chat_template"] = template
    write_json(file, content)
    (folder / CHAT_TEMPLATE).write_text(template, encoding="utf-8")


def write_chat_tokenizer(folder: str | Path, tokenizer: PreTrainedTokenizerFast, template_name: str) -> None:
    """Write a tokenizer of the published layout, with the chat template that renders what training rendered."""
    write_tokenizer(
        folder, tokenizer, chat_template(get_conv_template(template_name), has_bos=tokenizer.bos_token is not None)
    )


def read_generation(folder: Path) -> dict:
    """Return the generation settings of a checkpoint folder, which may have none.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / GENERATION_CONFIG
    return read_object(file, "Restore the file, or remove it") if file.is_file() else {}


def write_generation(
    folder: str | Path, settings: dict, tokenizer: PreTrainedTokenizerFast, template_name: str
) -> None:
    """Write generation settings that end an answer at the template's end mark, where ``model.chat`` ends it.

    Args:
        folder: where to.
        settings: marks that they name besides are kept: the published file also lists ``<|im_start|>``.
        tokenizer: the checkpoint's.
        template_name: of the conversation template.
    """
    end_mark = tokenizer.convert_tokens_to_ids(TEMPLATES[template_name].end_mark)
    known = settings.get("eos_token_id")
    known = known if isinstance(known, list) else [] if known is None else [known]
    if end_mark not in known:
        known = [end_mark, *(mark for mark in known if mark != tokenizer.eos_token_id)]
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    write_json(Path(folder) / GENERATION_CONFIG, {**ids, **settings, "eos_token_id": known})
