"""Merge LoRA into the weights it belongs to: tensor by tensor, in float32, without building a model."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from internvl.errors import UserError
from internvl.json_files import write_json
from internvl.model.adapter import PEFT_PREFIX, base_name, is_lora, lora_scaling
from internvl.model.atomic_folder import atomic_folder, check_free
from internvl.model.checkpoint import Checkpoint
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.loading import load_checkpoint_tokenizer, load_config
from internvl.model.packaging import read_generation, write_chat_tokenizer, write_generation, write_model_files
from internvl.model.safetensors_stream import DTYPE_OF_SPELLING, SPELLING, TensorPlan
from internvl.model.tiling import FIELDS as TILING_FIELDS

CHOICES_OF_DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Source:
    """Where a merged tensor comes from: a stored tensor, and the LoRA pair to add to it, if any."""

    weight: tuple[Checkpoint, str]
    lora: tuple[Checkpoint, str, str, float] | None = None  # file, A, B, alpha / rank

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """Return W + (alpha / rank) · B A, computed in float32 and rounded once to ``dtype``."""
        checkpoint, name = self.weight
        weight = checkpoint.tensor(name)
        if self.lora is not None:
            adapter, name_a, name_b, scaling = self.lora
            lora_a, lora_b = adapter.tensor(name_a).float(), adapter.tensor(name_b).float()
            weight = torch.addmm(weight.float(), lora_b, lora_a, alpha=scaling)
        return weight.to(dtype) if weight.is_floating_point() else weight


def plan_merge(checkpoint: Checkpoint, base: Checkpoint, *, allow_other_base: bool = False) -> dict[str, Source]:
    """Return the source of every tensor of the merged model, under its published name.

    ``base`` is the adapter's, or for a checkpoint with LoRA inside itself.

    Raises:
        UserError: there is nothing to merge, or the LoRA weights do not fit the model.
    """
    if checkpoint.is_adapter:
        return plan_adapter(checkpoint, base, allow_other_base=allow_other_base)
    if not checkpoint.has_embedded_lora:
        raise UserError(
            f"{checkpoint.folder}: has no LoRA weights, so there is nothing to merge. Name the folder of a LoRA "
            "finetune."
        )
    return plan_embedded(checkpoint)


def plan_adapter(adapter: Checkpoint, base: Checkpoint, *, allow_other_base: bool = False) -> dict[str, Source]:
    """Plan the merge of an adapter folder into its base, in place of LoRA inside the base, if any: its start."""
    recorded = adapter.recorded_base_sha256
    if recorded and not allow_other_base and recorded != base.sha256():
        raise UserError(
            f"{adapter.folder}: was trained on a base with other weights than {base.folder} has now (SHA-256 "
            f"{recorded[:12]}… recorded). Restore that base at this path, name it with --base, or pass "
            "--allow-other-base if these weights are meant."
        )
    sources = plan_embedded(base)
    for stored in adapter.tensors:
        name = stored.removeprefix(PEFT_PREFIX)
        if ".lora_B." in name:
            continue
        target = name.replace(".lora_A.weight", ".weight")
        if target not in sources:
            raise UserError(
                f"{adapter.folder}: {stored} has no place in {base.folder}. Use the base it was trained on."
            )
        if ".lora_A." in name:
            pair = (stored, stored.replace(".lora_A.", ".lora_B."))
            sources[target] = Source(
                sources[target].weight, (adapter, *pair, lora_scaling(adapter, name.split(".")[0]))
            )
        else:
            trained, (owner, weight) = adapter.tensors[stored].shape, sources[target].weight
            if trained != owner.tensors[weight].shape:
                raise UserError(
                    f"{adapter.folder}: {stored} of shape {trained} does not fit {target} of shape "
                    f"{owner.tensors[weight].shape}. Use the base it was trained on."
                )
            sources[target] = Source((adapter, stored))
    check_shapes(sources)
    return sources


def plan_embedded(checkpoint: Checkpoint) -> dict[str, Source]:
    """Plan the merge of a full checkpoint with LoRA inside, as the original trainer saved it (alpha = 2 · rank)."""
    sources = {}
    for stored in checkpoint.tensors:
        if is_lora(stored):
            continue
        layer = stored.removesuffix(".base_layer.weight")
        pair = (f"{layer}.lora_A.default.weight", f"{layer}.lora_B.default.weight")
        lora = (checkpoint, *pair, 2.0) if pair[0] in checkpoint.tensors else None
        sources[base_name(stored)] = Source((checkpoint, stored), lora)
    check_shapes(sources)
    return sources


def check_shapes(sources: dict[str, Source]) -> None:
    """Refuse LoRA pairs that lack a half or do not fit their weight, before anything is written."""
    for name, source in sources.items():
        checkpoint, stored = source.weight
        if source.lora is None:
            continue
        adapter, name_a, name_b, _ = source.lora
        if name_b not in adapter.tensors:
            raise UserError(f"{adapter.folder}: has {name_a} but not {name_b}. Copy the complete adapter there.")
        shapes = [adapter.tensors[half].shape for half in (name_b, name_a)]
        # (out, rank) and (rank, in)
        product = (*shapes[0][:1], *shapes[1][1:])
        if product != checkpoint.tensors[stored].shape or len(product) != 2 or shapes[0][1:] != shapes[1][:1]:
            raise UserError(
                f"{adapter.folder}: LoRA of shapes {shapes[0]} and {shapes[1]} does not fit {name} of shape "
                f"{checkpoint.tensors[stored].shape}. Use the base it was trained on."
            )


def merge_checkpoint(
    checkpoint: Checkpoint,
    out: str | Path,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    allow_other_base: bool = False,
) -> int:
    """Write the merged model to ``out`` and return how many tensors LoRA changed.

    Every tensor keeps the dtype it has in the base unless ``dtype`` (float32, bfloat16, float16) names another. A
    base whose weights have another hash than the adapter recorded is taken only with ``allow_other_base``. The
    folder is written beside and renamed at the end: it is there completely or not at all.

    Raises:
        UserError: nothing to merge, an unfit base, or ``out`` holds something already.
    """
    out = Path(out)
    check_free(out, overwrite=overwrite)
    config, tokenizer = load_config(checkpoint), load_checkpoint_tokenizer(checkpoint)
    base = checkpoint.base() if checkpoint.is_adapter else checkpoint
    sources = plan_merge(checkpoint, base, allow_other_base=allow_other_base)
    stored = {name: source.weight[0].tensors[source.weight[1]] for name, source in sources.items()}
    # A module trained in full is in the adapter as float32; the merged model keeps the dtype of the base.
    spelling = SPELLING[CHOICES_OF_DTYPE[dtype]] if dtype else None
    published = {base_name(name): tensor.dtype for name, tensor in base.tensors.items()}
    kept = {name: published.get(name, stored[name].dtype) for name in sources}
    plan = TensorPlan({name: (stored[name].shape, spelling or kept[name]) for name in sources})

    def values() -> Iterator[tuple[str, torch.Tensor]]:
        for name, source in tqdm(sources.items(), desc="Merging", unit=" tensors", delay=1):
            yield name, source.read(DTYPE_OF_SPELLING[plan.tensors[name][1]])

    with atomic_folder(out) as partial:
        plan.write(partial, values())
        write_surroundings(partial, base, config, tokenizer, plan)
    return sum(source.lora is not None for source in sources.values())


def write_surroundings(
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
