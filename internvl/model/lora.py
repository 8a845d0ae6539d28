"""What an adapter does to its base model: merged into the weights, or as LoRA layers beside them.

LoRA (arXiv:2106.09685) adds s B A to the weight W of a base layer, with A (rank, in) and B (out, rank); DoRA
(arXiv:2402.09353) then scales each row to a trained length. An adapter file also holds modules trained in full, whose
tensors replace the base's. Both ways start from an :class:`Adapter`, which ``read_adapter`` makes.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from peft.tuners.lora import LoraLayer as PeftLayer
from torch import nn

from internvl.model.adapter_config import LoraSettings
from internvl.model.adapter_names import NameMap
from internvl.model.checkpoint import Checkpoint
from internvl.model.hf_names import join, split
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel


@dataclass(frozen=True)
class LoraPart:
    """LoRA as it was trained: the names of its tensors in the adapter file, its rank, and what B A is scaled by."""

    lora_a: str
    lora_b: str
    rank: int
    scaling: float
    bias: str | None = None
    magnitude: str | None = None


@dataclass
class LoraLayer:
    """LoRA of a base layer of this ``kind``, by part: 0, or query, key and value where the adapter has them apart."""

    kind: type[nn.Module]
    num_parts: int
    parts: dict[int, LoraPart] = field(default_factory=dict)


@dataclass
class Adapter:
    """An adapter folder, read and checked against a base model.

    ``layers`` are those with LoRA, by their published names. ``replaced`` are published tensors, or parts of one, that
    were trained in full: name → part → stored name.
    """

    checkpoint: Checkpoint
    config: InternVLChatConfig
    settings: LoraSettings
    names: NameMap
    layers: dict[str, LoraLayer]
    replaced: dict[str, dict[int, str]]

    @property
    def changed(self) -> set[str]:
        """The published tensors that are others in the merged model than in the base."""
        biases = {
            f"{name}.bias" for name, layer in self.layers.items() if any(part.bias for part in layer.parts.values())
        }
        return {f"{name}.weight" for name in self.layers} | biases | self.replaced.keys()

    def read(self, stored: str) -> torch.Tensor:
        """Return a tensor of the file in float32."""
        return self.checkpoint.tensor(stored).float()

    def split(self, name: str, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return the parts of a published tensor that the adapter has names for."""
        return split(name, tensor, self.config) if self.names.layout.is_hf else [tensor]

    def join(self, name: str, parts: list[torch.Tensor]) -> torch.Tensor:
        return join(name, parts, self.config)

    def replace(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the base layer's tensor: the base's own, or what was trained in full in its place (float32)."""
        if name not in self.replaced:
            return tensor
        parts = self.split(name, tensor.float())
        for part, stored in self.replaced[name].items():
            parts[part] = self.read(stored)
        return self.join(name, parts)

    def merge(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a published tensor with the adapter in it, in float32 where it changes."""
        tensor = self.replace(name, tensor)
        module, _, kind = name.rpartition(".")
        layer = self.layers.get(module)
        if layer is None or kind not in ("weight", "bias"):
            return tensor
        parts = self.split(name, tensor.float())
        for index, part in layer.parts.items():
            if kind == "weight":
                magnitude = self.read(part.magnitude) if part.magnitude else None
                pair = self.read(part.lora_a), self.read(part.lora_b)
                parts[index] = merge_weight(layer.kind, parts[index], *pair, part.scaling, magnitude)
            elif part.bias:
                parts[index] = parts[index] + self.read(part.bias) * part.scaling
        return self.join(name, parts)


def merge_weight(
    kind: type[nn.Module],
    weight: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    scaling: float,
    magnitude: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return W + s B A, or with DoRA's magnitudes m the rows m (W + s B A) / ‖W + s B A‖, in PEFT's order.

    Args:
        kind: of the base layer. An embedding's W is (tokens, channels), its A (rank, tokens), its B (channels, rank).
        weight: (out, in), or of a convolution (out, in, height, width); float32 like the others.
        lora_a: (rank, in), or (rank, in, height, width).
        lora_b: (out, rank), or (out, rank, 1, 1).
        scaling: s.
        magnitude: one number an output channel, in any shape.
    """
    delta = lora_b.flatten(1) @ lora_a.flatten(1)
    delta = (delta.T if kind is nn.Embedding else delta.view(weight.shape)) * scaling
    merged = weight + delta
    if magnitude is None:
        return merged
    return merged * (magnitude.flatten() / _row_norms(kind, merged)).view(_channels_last(kind, merged))


def _row_norms(kind: type[nn.Module], weight: torch.Tensor) -> torch.Tensor:
    """Return the length of the weights of each output channel, (out,), which DoRA trains apart from the direction."""
    return torch.linalg.norm(weight.T if kind is nn.Embedding else weight.flatten(1), dim=1)


def _channels_last(kind: type[nn.Module], weight: torch.Tensor) -> tuple[int, ...]:
    """Return the shape in which one number an output channel multiplies a weight."""
    return (1, -1) if kind is nn.Embedding else (-1, *[1] * (weight.dim() - 1))


def add_adapter(model: InternVLChatModel, adapter: Adapter) -> None:
    """Put an adapter's LoRA beside the layers of its base model, and its fully trained tensors in their place.

    Of a base with LoRA inside, the adapter's replaces it: that was its start.
    """
    _take_out_embedded_lora(model, adapter)
    base = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name in adapter.replaced:
            base[name].copy_(adapter.replace(name, base[name].detach().cpu()))
    if not adapter.layers:
        return
    stacks = {name: stack(adapter, name, base[f"{name}.weight"]) for name in adapter.layers}
    ranks = {name: tensors.rank for name, tensors in stacks.items()}
    (common, _), *_ = Counter(ranks.values()).most_common(1)
    config = LoraConfig(
        r=common,
        target_modules=list(ranks),
        rank_pattern={re.escape(name): rank for name, rank in ranks.items() if rank != common},
        use_dora=adapter.settings.use_dora,
        lora_bias=adapter.settings.lora_bias,
    )
    inject_adapter_in_model(config, model)
    for name, tensors in stacks.items():
        fill(model.get_submodule(name), tensors)


def merge_adapter(model: InternVLChatModel, adapter: Adapter, base: Checkpoint) -> None:
    """Merge an adapter into the model of its base, tensor by tensor: the weights that ``tools/merge_lora.py`` writes.

    Args:
        model: of ``base``, without LoRA inside, in any dtype and on any devices.
        adapter: read against that base.
        base: where each tensor is read again, in the precision in which it is stored.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name in sorted(adapter.changed):
            parameters[name].copy_(adapter.merge(name, base.tensor(name)))


class Stack(NamedTuple):
    """The tensors of one PEFT layer, float32; the shapes are those of :func:`merge_weight`."""

    lora_a: torch.Tensor
    lora_b: torch.Tensor
    scaling: float
    bias: torch.Tensor | None
    magnitude: torch.Tensor | None

    @property
    def rank(self) -> int:
        return self.lora_a.shape[0]


def stack(adapter: Adapter, name: str, weight: torch.Tensor) -> Stack:
    """Return the LoRA of a base layer; that of query, key and value apart becomes one whose rank is their sum.

    A is then their A one above the other, and B has in each part's rows, which lie in the order of the joint matrix,
    that part's B in the columns of its A, and zeros elsewhere. So B A is the parts' own, row by row.
    """
    layer = adapter.layers[name]
    if layer.num_parts == 1:
        part = layer.parts[0]
        bias, magnitude = (adapter.read(stored) if stored else None for stored in (part.bias, part.magnitude))
        return Stack(adapter.read(part.lora_a), adapter.read(part.lora_b), part.scaling, bias, magnitude)
    scalings = {part.scaling for part in layer.parts.values()}
    scaling = scalings.pop() if len(scalings) == 1 else 1.0
    total, start = sum(part.rank for part in layer.parts.values()), 0
    has_bias = any(part.bias for part in layer.parts.values())
    has_magnitude = any(part.magnitude for part in layer.parts.values())
    above, blocks, biases, magnitudes = [], [], [], []
    for index, rows in enumerate(adapter.split(f"{name}.weight", weight.detach().cpu())):
        blocks.append(torch.zeros(len(rows), total))
        biases.append(torch.zeros(len(rows)))
        magnitudes.append(_row_norms(layer.kind, rows.float()))  # with which DoRA changes nothing
        if index not in layer.parts:
            continue
        part = layer.parts[index]
        above.append(adapter.read(part.lora_a))
        blocks[-1][:, start : start + part.rank] = adapter.read(part.lora_b) * (part.scaling / scaling)
        start += part.rank
        if part.bias:
            biases[-1] = adapter.read(part.bias) * (part.scaling / scaling)
        if part.magnitude:
            magnitudes[-1] = adapter.read(part.magnitude)
    return Stack(
        torch.cat(above),
        adapter.join(f"{name}.weight", blocks),
        scaling,
        adapter.join(f"{name}.bias", biases) if has_bias else None,
        adapter.join(f"{name}.weight", magnitudes) if has_magnitude else None,
    )


def fill(layer: PeftLayer, tensors: Stack) -> None:
    """Give a PEFT layer its tensors: in float32 also beside a base in half precision, as PEFT has them."""
    device, name = layer.get_base_layer().weight.device, "default"
    layer.scaling[name] = tensors.scaling

    def parameter(tensor: torch.Tensor) -> nn.Parameter:
        return nn.Parameter(tensor.to(device), requires_grad=False)

    if name in layer.lora_embedding_A:
        layer.lora_embedding_A[name] = parameter(tensors.lora_a)
        layer.lora_embedding_B[name] = parameter(tensors.lora_b)
    else:
        layer.lora_A[name].weight = parameter(tensors.lora_a)
        layer.lora_B[name].weight = parameter(tensors.lora_b)
    if tensors.bias is not None:
        layer.lora_B[name].bias = parameter(tensors.bias)
    if tensors.magnitude is not None:
        layer.lora_magnitude_vector[name].weight = parameter(tensors.magnitude)


def _take_out_embedded_lora(model: InternVLChatModel, adapter: Adapter) -> None:
    """Take out the LoRA that a base has inside; it is merged where the adapter has none in its place."""
    for part in ("language_model", "vision_model"):
        wrapped = getattr(model, part)
        if not isinstance(wrapped, PeftModel):
            continue
        for name, layer in wrapped.base_model.model.named_modules():
            if isinstance(layer, PeftLayer) and f"{part}.{name}" not in adapter.layers:
                layer.merge()
        setattr(model, part, wrapped.unload())
    model.config.use_llm_lora = model.config.use_backbone_lora = 0
