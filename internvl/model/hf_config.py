"""Everything of a checkpoint but its weights, in transformers' own InternVL layout and back.

The classes are those of transformers 5.23: ``InternVLConfig`` (the language model's part is in hf_text_config.py),
``InternVLProcessor`` and, inside it, ``GotOcr2ImageProcessor``. What they have no place for, such as the name of the
conversation template, is kept in ``config.json`` under :data:`ORIGINAL` (the published ``config`` and
``generation_config``), which transformers carries along.
"""

import json
import shutil
from copy import deepcopy
from pathlib import Path

from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    PreTrainedTokenizerFast,
)

from internvl.errors import UserError, shorten
from internvl.json_files import write_json
from internvl.model.chat_template import chat_template
from internvl.model.config_schema import check_config, check_shapes
from internvl.model.hf_text_config import hf_language_model, make_text_config, rope_settings
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.conversation import (
    IMG_CONTEXT_TOKEN,
    IMG_END_TOKEN,
    IMG_START_TOKEN,
    TEMPLATES,
)
from internvl.model.internvl_chat.image_processing_internvl_chat import IMAGENET_MEAN, IMAGENET_STD
from internvl.model.internvl_chat.tokenization import load_tokenizer
from internvl.model.loading import one_line
from internvl.model.packaging import read_generation, write_chat_tokenizer, write_model_files, write_tokenizer
from internvl.model.tiling import most_tiles

ORIGINAL = "internvl_chat"
# transformers' processor looks its tokens up under these names, and "video_token". Its placeholder of a video never
# reaches the model, but must be a token of the vocabulary: a new one would have an id that the embeddings have no row
# for. So it is one that prompts with images do not use.
IMAGE_TOKENS = {
    "start_image_token": IMG_START_TOKEN,
    "end_image_token": IMG_END_TOKEN,
    "context_image_token": IMG_CONTEXT_TOKEN,
}
# InternLM2's, Qwen2.5's and Qwen3's, and what is left to Qwen2.
VIDEO_TOKENS = ("<|plugin|>", "<|video_pad|>", "</quad>")
# InternVLVisionRMSNorm of queries and keys is always built with its default.
QK_NORM_EPS = 1e-6

SAME_IN_VISION = (
    "num_channels",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "num_hidden_layers",
    "hidden_act",
    "norm_type",
    "layer_norm_eps",
    "attention_dropout",
    "initializer_range",
)
VISION_FIELDS = {
    **{name: name for name in SAME_IN_VISION},
    "image_size": "image_size",
    "patch_size": "patch_size",
    "qkv_bias": "attention_bias",
    "qk_normalization": "use_qk_norm",
    "dropout": "projection_dropout",
    "initializer_factor": "layer_scale_init_value",
}
CHAT_FIELDS = {"select_layer": "vision_feature_layer", "downsample_ratio": "downsample_ratio"}


def check_expressible(config: InternVLChatConfig, file: Path) -> None:
    """Refuse settings that transformers' classes cannot express: the result would answer differently.

    Raises:
        UserError: names the setting and its value.
    """
    keep = "Keep this checkpoint in the published layout"
    if config.ps_version != "v2":
        raise UserError(
            f"{file}: ps_version is {config.ps_version!r}, and transformers' InternVL has no other pixel shuffle than "
            f"v2. {keep}."
        )
    vision = config.vision_config
    if vision.qk_normalization and vision.layer_norm_eps != QK_NORM_EPS:
        raise UserError(
            f"{file}: vision_config has qk_normalization with layer_norm_eps {vision.layer_norm_eps}, and "
            f"transformers' InternVL normalises queries and keys with {QK_NORM_EPS} only. {keep}."
        )
    if int(1 / config.downsample_ratio) ** 2 != 1 / config.downsample_ratio**2:
        raise UserError(
            f"{file}: downsample_ratio is {config.downsample_ratio}, and transformers' InternVL takes the inverse of "
            f"a whole number. {keep}."
        )
    if config.dynamic_image_size and config.max_dynamic_patch > 1 and not config.use_thumbnail:
        raise UserError(
            f"{file}: use_thumbnail is false with max_dynamic_patch {config.max_dynamic_patch}, and transformers' "
            "image processor always adds a thumbnail to several tiles. Set use_thumbnail to true, or "
            "dynamic_image_size to false for one tile an image."
        )
    if config.template not in TEMPLATES:
        raise UserError(f"{file}: template is {config.template!r}. Set it to one of: {', '.join(TEMPLATES)}.")


def hf_config(config: InternVLChatConfig, original: dict, *, image_token_id: int, dtype: str) -> dict:
    """Return transformers' ``config.json`` for our ``config``; ``original`` is what to keep under :data:`ORIGINAL`."""
    llm, vision = config.llm_config, config.vision_config
    text_config = make_text_config(llm)
    rope = rope_settings(text_config.rope_parameters)
    vision_config = InternVLVisionConfig(**{theirs: getattr(vision, ours) for ours, theirs in VISION_FIELDS.items()})
    whole = InternVLConfig(
        text_config=text_config,
        vision_config=vision_config,
        image_token_id=image_token_id,
        image_seq_length=config.num_image_token,
        tie_word_embeddings=llm.tie_word_embeddings,
        architectures=["InternVLForConditionalGeneration"],
        **{theirs: getattr(config, ours) for ours, theirs in CHAT_FIELDS.items()},
    )
    content = json.loads(whole.to_json_string())
    # The names that transformers 4 reads, beside those of its successor.
    content["torch_dtype"] = dtype
    content["text_config"]["rope_theta"] = rope["rope_theta"]
    if rope["rope_type"] != "default":
        content["text_config"]["rope_scaling"] = {"rope_type": rope["rope_type"], "factor": rope["factor"]}
    return {**content, "dtype": dtype, ORIGINAL: original}


def parse_config(content: dict, file: Path = Path("config.json")) -> InternVLChatConfig:
    """Return the configuration in a ``config.json``; transformers writes to what it is given, so it gets a copy.

    Raises:
        UserError: it describes no model; ``file`` is named.
    """
    check_config(content, file)
    try:
        config = InternVLChatConfig.from_dict(deepcopy(content))
    except Exception as err:  # transformers' classes raise whatever a value of theirs makes them stumble over
        raise UserError(f"{file}: describes no model ({one_line(err)}). Restore the file.") from err
    check_shapes(config, file)
    return config


def original_config(content: dict, file: Path) -> dict:
    """Return our ``config.json`` from transformers' ``content``: as it was, with what has been changed since.

    Raises:
        UserError: the folder was not written by this project, or has become something that we have no class for.
    """
    if ORIGINAL not in content:
        raise UserError(
            f"{file}: has no entry {ORIGINAL!r}, so it is unknown which conversation template it was trained with. "
            "Name a folder that tools/convert_to_hf.py wrote."
        )
    kept = content[ORIGINAL]
    parts = [kept.get("config"), kept.get("generation_config", {})] if isinstance(kept, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{file}:{ORIGINAL}: is {shorten(kept)}. Restore the file.")
    try:
        whole = InternVLConfig.from_dict(deepcopy(content))
    except Exception as err:  # as above
        raise UserError(f"{file}: describes no model ({one_line(err)}). Restore the file.") from err
    original = deepcopy(kept["config"])
    before = parse_config(original, file)
    language = hf_language_model(before.llm_config)
    if (found := whole.text_config.model_type) != (expected := language.config_class.model_type):
        raise UserError(
            f"{file}: text_config has model_type {found!r}, not {expected!r}. Name a folder that "
            "tools/convert_to_hf.py wrote."
        )
    if before.template not in TEMPLATES:
        raise UserError(f"{file}:{ORIGINAL}.config.template: is missing. Set it to one of: {', '.join(TEMPLATES)}.")
    llm, vision = original.setdefault("llm_config", {}), original.setdefault("vision_config", {})
    levels = (
        (original, before, whole, CHAT_FIELDS),
        (llm, before.llm_config, whole.text_config, language.fields),
        (vision, before.vision_config, whole.vision_config, VISION_FIELDS),
    )
    for part, old, new, fields in levels:
        for ours, theirs in fields.items():
            value = getattr(new, theirs)
            value = value[0] if ours in ("image_size", "patch_size") else value  # (height, width) there
            if value != getattr(old, ours):
                part[ours] = value
    rope = rope_settings(whole.text_config.rope_parameters)
    if rope != rope_settings(before.llm_config.rope_parameters):
        scaled = rope["rope_type"] != "default"
        llm["rope_theta"] = rope["rope_theta"]
        llm["rope_scaling"] = {"type": rope["rope_type"], "factor": rope["factor"]} if scaled else None
        llm.pop("rope_parameters", None)
    dtype = content.get("dtype") or content.get("torch_dtype")
    if dtype and dtype != (original.get("dtype") or original.get("torch_dtype")):
        original.pop("torch_dtype", None)
        original["dtype"] = dtype
    return original


def write_hf_surroundings(
    folder: Path, generation: dict, config: InternVLChatConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Write tokenizer, processor, chat template and generation config; ``generation`` holds the published settings.

    ``InternVLProcessor`` switches tiling on in every call, whatever the files say, but takes the limits from them: so
    a model without tiling has a limit of one tile. ``AutoImageProcessor`` resizes with torchvision where that is
    installed, and no file can change that; its pixels differ by rounding. Its ``backend="pil"`` gives exactly ours.
    """
    video_token = _video_token(folder, tokenizer)
    template = chat_template(
        TEMPLATES[config.template],
        image=f"{IMG_CONTEXT_TOKEN}\n",
        video=f"{video_token}\n",
        has_bos=tokenizer.bos_token is not None,
    )
    write_tokenizer(folder, tokenizer, template, named_tokens={**IMAGE_TOKENS, "video_token": video_token})
    limit = most_tiles(config)
    pixels = {
        "size": {"height": config.image_size, "width": config.image_size},
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(
            crop_to_patches=True, min_patches=min(config.min_dynamic_patch, limit), max_patches=limit, **pixels
        ),
        tokenizer=load_tokenizer(folder),
        video_processor=InternVLVideoProcessor(**pixels),
        image_seq_length=config.num_image_token,
        chat_template=template,
    )
    processor.to_json_file(folder / "processor_config.json")

    write_json(folder / "generation_config.json", _hf_generation(generation, config.template, tokenizer))


def _video_token(folder: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the token that stands for a video in a prompt.

    Raises:
        UserError: the vocabulary has none.
    """
    vocab = tokenizer.get_vocab()
    found = next((token for token in VIDEO_TOKENS if token in vocab), None)
    if found is None:
        raise UserError(
            f"{folder}: the tokenizer has none of {', '.join(VIDEO_TOKENS)}, and transformers' processor needs one as "
            "its video token. Restore the published tokenizer files."
        )
    return found


def _hf_generation(published: dict, template: str, tokenizer: PreTrainedTokenizerFast) -> dict:
    """Return transformers' generation settings: the published ones, but an answer ends where ``model.chat`` ends it.

    That is at the template's end mark, while the published file also names ``<|im_start|>``.
    """
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.convert_tokens_to_ids(TEMPLATES[template].end_mark),
        "pad_token_id": tokenizer.pad_token_id,
    }
    return {**published, **{name: index for name, index in ids.items() if index is not None}}


def write_published_surroundings(folder: Path, source: Path, original: dict, published_generation: dict) -> None:
    """Write what is not weights of the published layout, from the folder ``source`` in transformers' layout.

    ``original`` is the content of ``config.json``, ``published_generation`` the generation settings there once were.
    """
    write_json(folder / "config.json", original)
    written = _hf_generation(published_generation, original["template"], load_tokenizer(source))
    changed = {key: value for key, value in read_generation(source).items() if value != written.get(key)}
    if published_generation or changed:
        write_json(folder / "generation_config.json", {**published_generation, **changed})
    write_chat_tokenizer(folder, load_tokenizer(source), original["template"])
    # As it was: a tokenizer loaded from the other layout has made special what the processor asks for by name.
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    write_model_files(folder, parse_config(original, folder / "config.json"))
