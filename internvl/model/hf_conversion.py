"""Turn a checkpoint of the published layout into transformers' own ``InternVLForConditionalGeneration``, and back.

InternViT and the projector are there under other names; InternLM2 is a Llama whose query, key and value weights lie in
one matrix (arXiv:2403.17297, section 2.2). So a conversion renames tensors and cuts or joins rows, and changes no
number: the way there and back gives every bit. Tensors are handled one at a time.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from internvl.errors import UserError, shorten
from internvl.json_files import write_json
from internvl.model.atomic_folder import atomic_folder, check_free
from internvl.model.checkpoint import Checkpoint
from internvl.model.hf_config import (
    check_expressible,
    hf_config,
    parse_config,
    write_hf_surroundings,
    write_published_surroundings,
)
from internvl.model.hf_names import hf_names, split, tied_output
from internvl.model.hf_view import PublishedView, check_tensors, published_tensors
from internvl.model.internvl_chat.conversation import IMG_CONTEXT_TOKEN
from internvl.model.loading import HF_MODEL_TYPE, load_checkpoint_tokenizer, one_line
from internvl.model.packaging import read_generation
from internvl.model.safetensors_stream import TensorPlan
from internvl.model.tiling import read_tiling
from internvl.progress import Progress

DTYPE_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def _check_whole(checkpoint: Checkpoint, model_type: str) -> None:
    """Refuse what is not a whole model of the layout with this ``model_type``.

    Raises:
        UserError: an adapter, LoRA weights inside, or the other layout.
    """
    if checkpoint.is_adapter or checkpoint.has_embedded_lora:
        lora = "is an adapter" if checkpoint.is_adapter else "has LoRA weights inside"
        merge = f"python tools/merge_lora.py {checkpoint.folder} MERGED"
        # The layout that a merge writes is the published one, whichever the adapter was trained on.
        advice = f"Merge it first: {merge}"
        if model_type == HF_MODEL_TYPE:
            advice = f"Merge it instead, which writes the published layout at once: {merge}"
        raise UserError(f"{checkpoint.folder}: {lora}, and only a whole model can be converted. {advice}")
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
    _check_whole(checkpoint, "internvl_chat")
    original = {**checkpoint.config, **read_tiling(checkpoint.folder)}
    config = parse_config(original, checkpoint.folder / "config.json")
    check_expressible(config, checkpoint.folder / "config.json")
    wanted = {name: tuple(tensor.shape) for name, tensor in published_tensors(config).items()}
    check_tensors(checkpoint, wanted, tied_output(config))
    tokenizer = load_checkpoint_tokenizer(checkpoint)

    planned = {}
    for name, info in checkpoint.tensors.items():
        parts = split(name, torch.empty(info.shape, device="meta"), config)
        planned.update({new: (tuple(p.shape), info.dtype) for new, p in zip(hf_names(name), parts, strict=True)})

    def values() -> Iterator[tuple[str, torch.Tensor]]:
        for name in Progress(checkpoint.tensors, desc="Converting", unit=" tensors", delay=1):
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
    _check_whole(checkpoint, HF_MODEL_TYPE)
    view = PublishedView(checkpoint)
    planned = {name: (info.shape, info.dtype) for name, info in view.tensors.items()}

    def values() -> Iterator[tuple[str, torch.Tensor]]:
        for name in Progress(planned, desc="Converting", unit=" tensors", delay=1):
            yield name, view.tensor(name)

    with atomic_folder(out) as partial:
        TensorPlan(planned).write(partial, values())
        write_published_surroundings(partial, checkpoint.folder, view.config, view.generation)
    return len(planned)
