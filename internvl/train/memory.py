"""The memory plan: what a training will need, which layers therefore recompute their activations, and what it took."""

import logging
import os
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psutil
import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from torch import distributed, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, TrainerCallback

from internvl.model.adapter import count_elements, lora_config_of, unwrapped
from internvl.model.internvl_chat.causal_lm import LOSS_CHUNK
from internvl.model.internvl_chat.language_models import language_model_of
from internvl.model.internvl_chat.modeling_intern_vit import InternVisionEncoderLayer
from internvl.model.internvl_chat.modeling_internvl_chat import (
    BACKBONE_LORA_TARGETS,
    VISION_BATCH,
    InternVLChatModel,
)
from internvl.model.internvl_chat.sequence_layout import SequenceLayout

logger = logging.getLogger(__name__)
GIB = 1 << 30
# One layer is run on so many tokens: what it keeps grows with them, and some (weights cast to half precision) stays.
MEASURED_TOKENS = (64, 128)
# What the CUDA context, cuBLAS and fragments of the allocator take beside tensors.
DEVICE_SHARE = 0.92


@dataclass(frozen=True)
class MicroBatch:
    """The largest that goes through the model at once: tokens of the language model, and tiles."""

    tokens: int
    tiles: int


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes one process needs on its device, by what they are for; ``available`` is what there is.

    ``per_layer`` are the activations of one language model layer, of which ``num_recomputed`` of ``num_layers`` keep
    their input alone, ``layer_input``, and one at a time is whole while it is recomputed.
    """

    weights: int
    trained: int
    vision: int
    logits: int
    per_layer: int
    layer_input: int
    num_layers: int
    num_recomputed: int
    program: int
    available: int

    @property
    def activations(self) -> int:
        whole = self.num_layers - self.num_recomputed + (self.num_recomputed > 0)
        norm = self.layer_input  # of the final norm
        return whole * self.per_layer + self.num_recomputed * self.layer_input + norm

    @property
    def total(self) -> int:
        return self.weights + self.trained + self.vision + self.logits + self.activations + self.program

    def __str__(self) -> str:
        gib = {name: getattr(self, name) / GIB for name in ("weights", "trained", "activations", "logits", "vision")}
        recomputed = f"{self.num_recomputed} of {self.num_layers} layers recompute theirs"
        return (
            f"{self.total / GIB:.1f} of {self.available / GIB:.1f} GiB: weights {gib['weights']:.1f}, gradients and "
            f"optimizer {gib['trained']:.1f}, activations {gib['activations']:.1f} ({recomputed}), logits "
            f"{gib['logits']:.1f}, vision encoder {gib['vision']:.1f}, the program {self.program / GIB:.1f}"
        )


def saved_bytes(run: Callable[[], torch.Tensor], module: nn.Module) -> int:
    """Return how many bytes ``run`` keeps for its backward pass, beside the parameters of ``module``."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    seen: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = run()  # held until the sum is made: storages that are freed would be counted under one address
    del output
    return sum(seen.values())


def _layer_bytes(
    layer: nn.Module,
    targets: list[str],
    rank: int,
    lora: LoraConfig | None,
    trains: bool,
    *runs: Callable[[nn.Module], torch.Tensor],
) -> list[int]:
    """Return the bytes that a layer keeps for its backward pass in each of ``runs``.

    Args:
        layer: on the meta device; its values do not matter.
        targets: ends of the names of its layers with LoRA.
        rank: of LoRA, 0 for none.
        lora: its other settings.
        trains: whether the layer's own weights train, without LoRA.
        runs: forward passes of the layer.
    """
    holder = nn.ModuleDict({"layer": layer}).requires_grad_(trains and not rank)
    if rank and lora is not None:
        own = {"r": rank, "target_modules": targets, "rank_pattern": {}, "alpha_pattern": {}}
        inject_adapter_in_model(LoraConfig(lora_dropout=lora.lora_dropout, use_dora=lora.use_dora, **own), holder)
    holder.to_empty(device="cpu")
    if rank:
        for name, parameter in holder.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
    holder.train()
    return [saved_bytes(partial(run, holder["layer"]), holder) for run in runs]


def plan_memory(
    model: InternVLChatModel | PeftModel,
    largest: MicroBatch,
    *,
    dtype: torch.dtype,
    device: torch.device,
    shards: int = 1,
    shard_weights: bool = False,
    bucket_elements: int = 0,
    recompute: str = "auto",
) -> MemoryPlan:
    """Plan the memory of a training.

    Args:
        model: the model that trains, with its frozen parts chosen.
        largest: the largest micro-batch.
        dtype: what is computed in.
        device: where it trains.
        shards: among how many ranks the optimizer's state is sharded (ZeRO).
        shard_weights: whether weights and gradients are, too.
        bucket_elements: of the buffers in which DeepSpeed exchanges gradients and weights.
        recompute: auto, true or false.
    """
    model, lora = unwrapped(model), lora_config_of(model)
    config, llm, vit = model.config, model.config.llm_config, model.config.vision_config
    member, size = language_model_of(llm), dtype.itemsize
    amp = partial(torch.autocast, "cpu", dtype=dtype, enabled=dtype != torch.float32)
    parts = {name: any(p.requires_grad for p in part.parameters()) for name, part in model.named_children()}

    def run_llm(layer: nn.Module, tokens: int) -> torch.Tensor:
        layout = SequenceLayout(((tokens, ()),))
        states = torch.zeros(1, tokens, llm.hidden_size, dtype=dtype, requires_grad=True)
        angles = torch.zeros(1, tokens, llm_head_dim(llm), dtype=dtype)
        with amp():
            output = layer(states, position_embeddings=(angles, angles), layout=layout)
        return output[0] if isinstance(output, tuple) else output

    def run_vit(layer: nn.Module) -> torch.Tensor:
        with amp():
            return layer(torch.zeros(1, patches, vit.hidden_size, dtype=dtype, requires_grad=True))

    patches = 1 + (config.image_size // vit.patch_size) ** 2
    with torch.device("meta"):
        llm_layer = member.layer_class(llm, 0).to(dtype)
        vit_layer = InternVisionEncoderLayer(vit, 0.0).to(dtype)
    targets = [name for name in lora.target_modules if name not in BACKBONE_LORA_TARGETS] if lora else []
    has_dropout = bool(config.use_llm_lora and lora and lora.lora_dropout)
    correction = cuda_correction(llm_layer, targets, llm, size, has_dropout) if device.type == "cuda" else 0
    arguments = (targets, config.use_llm_lora, lora, parts["language_model"])
    few, many = _layer_bytes(llm_layer, *arguments, *(partial(run_llm, tokens=tokens) for tokens in MEASURED_TOKENS))
    per_token = (many - few) / (MEASURED_TOKENS[1] - MEASURED_TOKENS[0])
    per_token += correction
    per_layer = round(few + per_token * (largest.tokens - MEASURED_TOKENS[0]))
    if parts["vision_model"]:
        arguments = (BACKBONE_LORA_TARGETS, config.use_backbone_lora, lora, True)
        (per_tile,) = _layer_bytes(vit_layer, *arguments, run_vit)
        vision = largest.tiles * vit.num_hidden_layers * per_tile
    else:
        # Not kept for the backward pass: a few tensors of one layer at a time.
        vision = min(largest.tiles, VISION_BATCH) * patches * size * (2 * vit.intermediate_size + 6 * vit.hidden_size)
    parameters = list(model.parameters())
    weights = sum(count_elements(parameter) * parameter.element_size() for parameter in parameters)
    trained = sum(count_elements(parameter) for parameter in parameters if parameter.requires_grad)
    # Gradients in float32, two moments, and DeepSpeed's own float32 copy of half precision weights.
    state = 8 + (4 if shards > 1 and dtype != torch.float32 else 0)
    plan = MemoryPlan(
        weights=weights // (shards if shard_weights else 1),
        trained=trained * state // shards + trained * 4 // (shards if shard_weights else 1) + bucket_elements * size,
        vision=vision,
        # In the dtype and in float32, with their gradients; the CPU's kernel works in place once.
        logits=LOSS_CHUNK * llm.vocab_size * ((12 if device.type == "cuda" else 8) + size),
        per_layer=per_layer,
        layer_input=largest.tokens * llm.hidden_size * size,
        num_layers=llm.num_hidden_layers,
        num_recomputed=llm.num_hidden_layers if recompute == "true" else 0,
        program=program_bytes(device, weights),
        available=available_bytes(device),
    )
    if recompute == "auto":
        while plan.total > plan.available and plan.num_recomputed < plan.num_layers:
            plan = replace(plan, num_recomputed=plan.num_recomputed + 1)
    return plan


def cuda_correction(
    layer: nn.Module, targets: Sequence[str], llm: PretrainedConfig, size: int, has_dropout: bool
) -> int:
    """Return the bytes a token keeps on a GPU beyond what the same layer keeps on the CPU, where it is measured.

    The CPU keeps dropout's mask as float32, CUDA as bytes; and a GPU has keys and values repeated for all heads for
    the suffixes' kernel, which takes masks but no grouped heads.

    Args:
        layer: of the language model.
        targets: ends of the names of its layers with LoRA.
        llm: its configuration.
        size: bytes of a value.
        has_dropout: whether there is dropout in front of LoRA.
    """
    inputs = sum(
        module.weight.shape[1]
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(tuple(targets))
    )
    copies = 2 * llm.num_attention_heads * llm_head_dim(llm) * size
    return copies - (3 * inputs if has_dropout else 0)


def llm_head_dim(config: PretrainedConfig) -> int:
    """Return the width of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def program_bytes(device: torch.device, weights: int) -> int:
    """Return what the program itself takes of the device's memory: on a CPU, this process without the weights."""
    if device.type == "cuda":
        return 0
    return max(0, psutil.Process().memory_info().rss - weights)


def available_bytes(device: torch.device) -> int:
    """Return the bytes this process may use on its device, the same on every process: the least of all."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        available = int((free + torch.cuda.memory_reserved(device)) * DEVICE_SHARE)
    else:
        free = psutil.virtual_memory().available
        limit, used = (_read_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
        if limit is not None and used is not None:
            free = min(free, limit - used)
        processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
        available = max(0, free) // processes + psutil.Process().memory_info().rss
    if distributed.is_initialized():
        # Layers that recompute may gather weights from other processes (ZeRO-3): all must choose the same ones.
        least = torch.tensor(available, dtype=torch.int64, device=device)
        distributed.all_reduce(least, distributed.ReduceOp.MIN)
        available = int(least)
    return available


def _read_number(file: Path) -> int | None:
    """Return the number in a file of the kernel's, None where it is not there or says "max"."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def recompute_activations(model: InternVLChatModel | PeftModel, num_layers: int) -> None:
    """Make the first ``num_layers`` layers of the language model recompute their activations in the backward pass.

    With all of them, layers of a vision encoder that trains do so, too; a frozen one keeps none.
    """
    layer_class = language_model_of(unwrapped(model).config.llm_config).layer_class
    llm = [module for module in model.modules() if isinstance(module, layer_class)]
    chosen: list[nn.Module] = llm[:num_layers]
    if num_layers == len(llm) and any(p.requires_grad for p in model.vision_model.parameters()):
        chosen += [module for module in model.modules() if isinstance(module, InternVisionEncoderLayer)]
    for layer in chosen:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


class PeakMemory(TrainerCallback):
    """Says at the end how much memory the training took at most."""

    def on_train_begin(self, args, state, control, **kwargs):
        if args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(args.device)
        else:
            reset_peak()

    def on_train_end(self, args, state, control, **kwargs):
        logger.info("Peak memory of this process: %.2f GiB", peak_bytes(args.device) / GIB)


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that this process has taken: of its GPU, or on a CPU of the machine."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else read_peak()


def reset_peak() -> None:
    """Forget the peak of this process's resident memory, where the kernel lets it (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        logger.debug("The peak before the training counts, too: this system does not forget it.")


def read_peak() -> int:
    """Return the peak of this process's resident memory in bytes since the last reset."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
