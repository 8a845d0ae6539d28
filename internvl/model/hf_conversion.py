"""Turn a checkpoint of the published layout into transformers' own ``InternVLForConditionalGeneration``, and back.

InternViT and the projector are there under other names; InternLM2 is a Llama whose query, key and value weights lie in
one matrix (arXiv:2403.17297, section 2.2). So a conversion renames tensors and cuts or joins rows, and changes no
number: the way there and back gives every bit. Tensors are handled one at a time.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from internvl.errors import UserError, shorten
from internvl.json_files import write_json
from internvl.model.atomic_folder import atomic_folder, check_free
from internvl.model.checkpoint import Checkpoint
from internvl.model.hf_config import (
    ORIGINAL,
    check_expressible,
    hf_config,
    original_config,
    parse_config,
    write_hf_surroundings,
    write_published_surroundings,
)
from internvl.model.hf_names import OUTPUT, hf_names, join, split
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.conversation import IMG_CONTEXT_TOKEN
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.loading import load_checkpoint_tokenizer, one_line
from internvl.model.packaging import read_generation
from internvl.model.safetensors_stream import TensorPlan
from internvl.model.tiling import read_tiling

DTYPE_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def published_tensors(config: InternVLChatConfig) -> dict[str, torch.Tensor]:
    """Return the tensors a published checkpoint of this configuration holds, on the meta device: shapes only."""
    with torch.device("meta"):
        return dict(InternVLChatModel(config).state_dict())


def check_tensors(checkpoint: Checkpoint, wanted: dict[str, tuple[int, ...]], optional: str | None) -> None:
    """Refuse a checkpoint that lacks a tensor, has one without a place, or one of another shape.

    Raises:
        UserError: names the first such tensor.
    """
    stored = checkpoint.tensors
    missing = [name for name in wanted if name not in stored and name != optional]
    if missing:
        raise UserError(
            f"{checkpoint.folder}: lacks {len(missing)} of the model's {len(wanted)} tensors, first {missing[0]}. "
            "Copy the complete checkpoint there."
        )
    for name, info in stored.items():
        if name not in wanted:
            raise UserError(
                f"{checkpoint.folder}: holds {name}, which the other layout has no place for. Remove it, or keep the "
                "checkpoint in this layout."
            )
        if info.shape != wanted[name]:
            raise UserError(
                f"{checkpoint.folder}: {name} has shape {info.shape}, and config.json makes it {wanted[name]}. Put "
                "the weights and the config of one checkpoint there."
            )


def check_whole(checkpoint: Checkpoint, model_type: str) -> None:
    """Refuse what is not a whole model of the layout with this ``model_type``.

    Raises:
        UserError: an adapter, LoRA weights inside, or the other layout.
    """
    lora = "is an adapter" if checkpoint.is_adapter else "has LoRA weights inside"
    if checkpoint.is_adapter or checkpoint.has_embedded_lora:
        raise UserError(
            f"{checkpoint.folder}: {lora}, and only a whole model can be converted. Merge it first: "
            f"python tools/merge_lora.py {checkpoint.folder} MERGED"
        )
    found = checkpoint.config.get("model_type")
    if found == model_type:
        return
    advice = {
        "internvl": "That is transformers' own layout already; pass --back to turn it into the published one.",
        "internvl_chat": "That is the published layout already; leave out --back to turn it into transformers' own.",
    }.get(str(found), "Name a folder with an InternVL-Chat checkpoint.")
    raise UserError(
        f"{checkpoint.folder / 'config.json'}: model_type is {shorten(found)}, not {model_type!r}. {advice}"
    )


def convert_to_hf(checkpoint: Checkpoint, out: str | Path, *, overwrite: bool = False) -> int:
    """Write ``checkpoint``, a base or a merged model, to ``out`` in transformers' layout; return the tensors written.

    Raises:
        UserError: not a whole model, a setting that transformers' classes lack, or ``out`` holds something already.
    """
    out = Path(out)
    check_free(out, overwrite=overwrite)
    check_whole(checkpoint, "internvl_chat")
    original = {**checkpoint.config, **read_tiling(checkpoint.folder)}
    config = parse_config(original, checkpoint.folder / "config.json")
    check_expressible(config, checkpoint.folder / "config.json")
    wanted = {name: tuple(tensor.shape) for name, tensor in published_tensors(config).items()}
    check_tensors(checkpoint, wanted, OUTPUT if config.llm_config.tie_word_embeddings else None)
    tokenizer = load_checkpoint_tokenizer(checkpoint)

    planned = {}
    for name, info in checkpoint.tensors.items():
        parts = split(name, torch.empty(info.shape, device="meta"), config)
        planned.update({new: (tuple(p.shape), info.dtype) for new, p in zip(hf_names(name), parts, strict=True)})

    def values() -> Iterator[tuple[str, torch.Tensor]]:
        for name in tqdm(checkpoint.tensors, desc="Converting", unit=" tensors", delay=1):
            yield from zip(hf_names(name), split(name, checkpoint.tensor(name), config), strict=True)

    generation = read_generation(checkpoint.folder)
    named_dtype = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    stored_dtype = next(DTYPE_NAMES[t.dtype] for t in checkpoint.tensors.values() if t.dtype in DTYPE_NAMES)
    try:
        content = hf_config(
            config,
            {"config": original, "generation_config": generation},
            image_token_id=tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN),
            dtype=named_dtype or stored_dtype,
        )
    except Exception as err:  # transformers' classes are stricter than ours, each in its own words
        raise UserError(
            f"{checkpoint.folder / 'config.json'}: transformers' InternVL does not take it ({one_line(err)}). Correct "
            "the value, or keep this checkpoint in the published layout."
        ) from err
    with atomic_folder(out) as partial:
        TensorPlan(planned).write(partial, values())
        write_json(partial / "config.json", content)
        write_hf_surroundings(partial, generation, config, tokenizer)
    return len(planned)


def convert_from_hf(checkpoint: Checkpoint, out: str | Path, *, overwrite: bool = False) -> int:
    """Write ``checkpoint``, which :func:`convert_to_hf` wrote, to ``out`` in the published layout.

    transformers may have trained and saved it again in between. Returns the number of tensors written.

    Raises:
        UserError: not such a folder, or ``out`` holds something already.
    """
    out = Path(out)
    check_free(out, overwrite=overwrite)
    check_whole(checkpoint, "internvl")
    original = original_config(checkpoint.config, checkpoint.folder / "config.json")
    config = parse_config(original, checkpoint.folder / "config.json")
    published = published_tensors(config)
    wanted = {}
    for name, tensor in published.items():
        parts = split(name, tensor, config)
        wanted.update({new: tuple(p.shape) for new, p in zip(hf_names(name), parts, strict=True)})
    check_tensors(checkpoint, wanted, *(hf_names(OUTPUT) if config.llm_config.tie_word_embeddings else (None,)))

    stored = checkpoint.tensors
    planned = {
        name: (tuple(tensor.shape), stored[hf_names(name)[0]].dtype)
        for name, tensor in published.items()
        if hf_names(name)[0] in stored
    }

    def values() -> Iterator[tuple[str, torch.Tensor]]:
        for name in tqdm(planned, desc="Converting", unit=" tensors", delay=1):
            yield name, join(name, [checkpoint.tensor(part) for part in hf_names(name)], config)

    with atomic_folder(out) as partial:
        TensorPlan(planned).write(partial, values())
        generation = checkpoint.config[ORIGINAL].get("generation_config", {})
        write_published_surroundings(partial, checkpoint.folder, original, generation)
    return len(planned)
