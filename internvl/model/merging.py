"""Merge LoRA into the weights it belongs to: tensor by tensor, in float32, without building a model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from internvl.errors import UserError
from internvl.json_files import write_json
from internvl.model.adapter import base_name, is_lora
from internvl.model.adapter_reading import read_adapter
from internvl.model.atomic_folder import atomic_folder, check_free
from internvl.model.checkpoint import Checkpoint
from internvl.model.hf_config import write_published_surroundings
from internvl.model.hf_view import PublishedView
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.loading import check_complete, load_checkpoint_tokenizer, load_config, source_of
from internvl.model.lora import Adapter, merge_weight
from internvl.model.packaging import read_generation, write_chat_tokenizer, write_generation, write_model_files
from internvl.model.safetensors_stream import DTYPE_OF_SPELLING, SPELLING, TensorPlan
from internvl.model.tiling import FIELDS as TILING_FIELDS
from internvl.progress import Progress

CHOICES_OF_DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES_OF_DTYPE = {SPELLING[dtype]: name for name, dtype in CHOICES_OF_DTYPE.items()}


@dataclass(frozen=True)
class Source:
    """Where a merged tensor comes from: a stored tensor, and what is added to it or replaces it, if anything."""

    weight: tuple[Checkpoint, str]
    embedded: tuple[str, str, float] | None = None  # A, B in the same file, alpha / rank
    adapter: tuple[Adapter, str] | None = None  # and the published name

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the merged tensor, computed in float32 and rounded once to ``dtype``.

        Raises:
            UserError: it is not finite.
        """
        checkpoint, name = self.weight
        weight = checkpoint.tensor(name)
        if not weight.is_floating_point():
            return weight
        if self.embedded is not None:
            lora_a, lora_b, scaling = self.embedded
            pair = checkpoint.tensor(lora_a).float(), checkpoint.tensor(lora_b).float()
            weight = merge_weight(nn.Linear, weight.float(), *pair, scaling)
        if self.adapter is not None:
            adapter, published = self.adapter
            weight = adapter.merge(published, weight)
        merged = weight.to(dtype)
        if not merged.isfinite().all():
            raise UserError(
                f"{checkpoint.folder}: {name} merged is not finite in {str(dtype).removeprefix('torch.')}. "
                + ("Pass --dtype bfloat16, or float32." if weight.isfinite().all() else "Copy the checkpoint again.")
            )
        return merged


def _plan_adapter(adapter: Adapter, base: Checkpoint) -> dict[str, Source]:
    """Return the source of every merged tensor of an adapter and its base, under its published name.

    LoRA inside the base, if any, was the adapter's start: the adapter's takes its place.
    """
    changed = adapter.changed
    return {
        name: Source(
            source.weight,
            None if name.removesuffix(".weight") in adapter.layers else source.embedded,
            (adapter, name) if name in changed else None,
        )
        for name, source in _plan_embedded(base).items()
    }


def _plan_embedded(checkpoint: Checkpoint) -> dict[str, Source]:
    """Plan the merge of a full checkpoint with LoRA inside, as the original trainer saved it (alpha = 2 · rank).

    Raises:
        UserError: a LoRA pair lacks a half, or does not fit its weight.
    """
    sources = {}
    for stored, info in checkpoint.tensors.items():
        if is_lora(stored):
            continue
        layer = stored.removesuffix(".base_layer.weight")
        pair = (f"{layer}.lora_A.default.weight", f"{layer}.lora_B.default.weight")
        if pair[0] in checkpoint.tensors:
            _check_pair(checkpoint, pair, info.shape)
        sources[base_name(stored)] = Source(
            (checkpoint, stored), (*pair, 2.0) if pair[0] in checkpoint.tensors else None
        )
    return sources


def _check_pair(checkpoint: Checkpoint, pair: tuple[str, str], shape: tuple[int, ...]) -> None:
    """Refuse a LoRA pair inside a checkpoint that lacks a half or does not fit its weight.

    Raises:
        UserError: names them.
    """
    if pair[1] not in checkpoint.tensors:
        raise UserError(f"{checkpoint.folder}: has {pair[0]} but not {pair[1]}. Copy the complete checkpoint there.")
    a, b = (checkpoint.tensors[half].shape for half in pair)
    # (out, rank) and (rank, in)
    if (*b[:1], *a[1:]) != shape or len(shape) != 2 or b[1:] != a[:1]:
        raise UserError(
            f"{checkpoint.folder}: {pair[0]} of shape {a} and its B of shape {b} do not fit their weight of shape "
            f"{shape}. Copy the checkpoint again."
        )


def check_base(checkpoint: Checkpoint, base: Checkpoint) -> None:
    """Refuse a base with other weights than an adapter of ours has recorded.

    Raises:
        UserError: says so, with the ways on.
    """
    recorded = checkpoint.recorded_base_sha256
    if recorded and recorded != base.sha256():
        raise UserError(
            f"{checkpoint.folder}: was trained on a base with other weights than {base.folder} has now (SHA-256 "
            f"{recorded[:12]}… recorded). Restore that base at this path, name it with --base, or pass "
            "--allow-other-base if these weights are meant."
        )


def merge_checkpoint(
    checkpoint: Checkpoint,
    out: str | Path,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    allow_other_base: bool = False,
    check: Callable[[Path, Adapter | None], None] | None = None,
) -> int:
    """Write the merged model to ``out`` in the published layout, and return how many tensors LoRA changed.

    The folder is written beside and renamed at the end: it is there completely or not at all.

    Args:
        checkpoint: an adapter folder, or a full checkpoint with LoRA inside.
        out: the folder to write.
        dtype: float32, bfloat16 or float16 for all tensors; by default each keeps the dtype it has in the base.
        overwrite: replace what is in ``out``.
        allow_other_base: take a base whose weights have another hash than the adapter recorded.
        check: called with the written folder, before it gets its name, and the adapter (None: LoRA was inside); what
            it raises ends the merge.

    Raises:
        UserError: nothing to merge, an adapter that is not read, an unfit base, or ``out`` holds something already.
    """
    out = Path(out)
    check_free(out, overwrite=overwrite)
    if not checkpoint.is_adapter and not checkpoint.has_embedded_lora:
        raise UserError(
            f"{checkpoint.folder}: has no LoRA weights, so there is nothing to merge. Name the folder of a LoRA "
            "finetune."
        )
    base = source_of(checkpoint)
    config, tokenizer = load_config(checkpoint), load_checkpoint_tokenizer(checkpoint)
    check_complete(base, config)
    if checkpoint.is_adapter and not allow_other_base:
        check_base(checkpoint, base)
    adapter = read_adapter(checkpoint, config) if checkpoint.is_adapter else None
    sources = _plan_adapter(adapter, base) if adapter else _plan_embedded(checkpoint)
    stored = {name: source.weight[0].tensors[source.weight[1]] for name, source in sources.items()}
    spelling = SPELLING[CHOICES_OF_DTYPE[dtype]] if dtype else None
    plan = TensorPlan({name: (info.shape, spelling or info.dtype) for name, info in stored.items()})

    def values() -> Iterator[tuple[str, torch.Tensor]]:
        for name, source in Progress(sources.items(), desc="Merging", unit=" tensors", delay=1):
            yield name, source.read(DTYPE_OF_SPELLING[plan.tensors[name][1]])

    with atomic_folder(out) as partial:
        plan.write(partial, values())
        if not isinstance(base, PublishedView):
            _write_surroundings(partial, base, config, tokenizer, plan)
        else:
            write_published_surroundings(partial, base.folder, published_config(base, plan), base.generation)
        if check is not None:
            check(partial, adapter)
    return sum(source.embedded is not None or source.adapter is not None for source in sources.values())


def published_config(base: PublishedView, plan: TensorPlan) -> dict:
    """Return the ``config.json`` of a base in transformers' layout, with the dtype that the merged weights have."""
    content = {key: value for key, value in base.config.items() if key != "torch_dtype"}
    return {**content, "dtype": next(NAMES_OF_DTYPE[dtype] for _, dtype in plan.tensors.values() if dtype != "I64")}


def _write_surroundings(
    folder: Path, base: Checkpoint, config: InternVLChatConfig, tokenizer: PreTrainedTokenizerFast, plan: TensorPlan
) -> None:
    """Write what is not weights: the base's config without LoRA, tokenizer, generation config, model files."""
    content = dict(base.config)
    content["use_llm_lora"] = content["use_backbone_lora"] = 0
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    content.update({own: getattr(config, own) for own in TILING_FIELDS.values()})
    content["dtype"] = next((names[dtype] for _, dtype in plan.tensors.values() if dtype in names), "float32")
    write_json(folder / "config.json", content)
    write_generation(folder, read_generation(base.folder), tokenizer, config.template)
    write_chat_tokenizer(folder, tokenizer, config.template)
    write_model_files(folder, config)


def describe(folder: Path) -> str:
    """Return the size of a written checkpoint for the log, like ``4.41 GB in 1 file``."""
    files = sorted(folder.glob("model*.safetensors"))
    size = sum(file.stat().st_size for file in files) / 1e9
    return f"{size:.2f} GB in {len(files)} {'file' if len(files) == 1 else 'files'}"
