"""Read any LoRA adapter as PEFT reads it: the one reader of merging, evaluation and chat.

Every tensor of an adapter file is given its place in the base model here, or refused by name, before it is used.
"""

import logging
from collections import defaultdict
from copy import deepcopy

import torch
from torch import nn

from internvl.errors import UserError, shorten
from internvl.model.adapter_config import read_settings
from internvl.model.adapter_names import StoredTensor, choose_map, take_apart
from internvl.model.checkpoint import Checkpoint
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.language_models import language_model_of
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.lora import Adapter, LoraLayer, LoraPart

logger = logging.getLogger(__name__)
# What makes LoRA of a layer of each kind: the tensor next to its input, and the one next to its output.
PAIRS = {
    nn.Linear: ("lora_A", "lora_B"),
    nn.Conv2d: ("lora_A", "lora_B"),
    nn.Embedding: ("lora_embedding_A", "lora_embedding_B"),
}
MAGNITUDE = "lora_magnitude_vector"


def read_adapter(checkpoint: Checkpoint, config: InternVLChatConfig) -> Adapter:
    """Read an adapter folder for a base model of this ``config``.

    Raises:
        UserError: the adapter is of a kind that is not read, damaged or incomplete, or of another base.
    """
    settings = read_settings(checkpoint)
    _check_values(checkpoint)
    outline = _outline_of(config)
    where = str(checkpoint.weight_files[0])
    taken_apart = {stored: take_apart(stored, where) for stored in checkpoint.tensors}
    tensors = {stored: tensor for stored, tensor in taken_apart.items() if tensor is not None}
    if len(adapters := {tensor.adapter for tensor in tensors.values() if tensor.adapter}) > 1:
        raise UserError(
            f"{where}: holds several adapters ({', '.join(map(shorten, sorted(adapters)))}). Save the one that is "
            "meant with PEFT's save_pretrained(OUT, selected_adapters=[NAME])."
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in outline.named_parameters(remove_duplicate=False)}
    names = choose_map(tensors, shapes, where)
    adapter = Adapter(checkpoint, config, settings, names, {}, {})
    pairs: dict[str, dict[str, str]] = defaultdict(dict)
    for stored, tensor in tensors.items():
        if tensor.half:
            _check_once(checkpoint, pairs[tensor.name].get(tensor.half), stored)
            pairs[tensor.name][tensor.half] = stored
        else:
            _add_replaced(adapter, stored, tensor, shapes)
    for own, halves in pairs.items():
        _add_part(adapter, own, halves, outline)
    if ambiguous := next((own for own in pairs if len(settings.alphas(own)) > 1), None):
        logger.warning(
            "%s:alpha_pattern: several patterns fit %s, with alpha %s. The first counts, as in PEFT; but PEFT sorts "
            "them when it saves, so it may not be the one that counted in the training.",
            settings.file,
            ambiguous,
            " and ".join(f"{alpha:g}" for alpha in settings.alphas(ambiguous)),
        )
    _check_saved_modules(adapter, where)
    _check_ties(adapter, where)
    _check_embedded_ranks(adapter, where)
    return adapter


def _outline_of(config: InternVLChatConfig) -> InternVLChatModel:
    """Return the model without numbers (on the meta device) and without LoRA of its own."""
    config = deepcopy(config)
    config.use_llm_lora = config.use_backbone_lora = 0
    with torch.device("meta"):
        return InternVLChatModel(config)


def _check_values(checkpoint: Checkpoint) -> None:
    """Refuse a file whose tensors are empty or hold something else than finite numbers.

    Raises:
        UserError: names the first such tensor.
    """
    where = checkpoint.weight_files[0]
    if not checkpoint.tensors:
        raise UserError(f"{where}: holds no tensors. Copy the file again.")
    empty = [stored for stored, info in checkpoint.tensors.items() if 0 in info.shape]
    if empty:
        raise UserError(
            f"{where}: {len(empty)} of {len(checkpoint.tensors)} tensors are empty, first {shorten(empty[0])}, as "
            "DeepSpeed ZeRO-3 leaves them where a process saves its own share. Save the adapter again with the "
            "weights gathered: save_pretrained inside deepspeed.zero.GatheredParameters(model.parameters())."
        )
    for stored in checkpoint.tensors:
        if not checkpoint.tensor(stored).isfinite().all():
            raise UserError(
                f"{where}: {shorten(stored)} holds NaN or infinity, so the training had failed when it was saved. Use "
                "an earlier checkpoint of it."
            )


def _add_replaced(adapter: Adapter, stored: str, tensor: StoredTensor, shapes: dict[str, tuple[int, ...]]) -> None:
    """Note a tensor that was trained in full."""
    place, shape = adapter.names.find(tensor), adapter.checkpoint.tensors[stored].shape
    assert place is not None, "choose_map takes a map that has every tensor"
    wanted = _part_shape(adapter, place.name, place.part, shapes[place.name])
    where = adapter.checkpoint.weight_files[0]
    if shape != wanted:
        raise UserError(
            f"{where}: {shorten(stored)} of shape {shape} does not fit {place.name}, which is {wanted} in the base. "
            "Use the base it was trained on."
        )
    parts = adapter.replaced.setdefault(place.name, {})
    _check_once(adapter.checkpoint, parts.get(place.part), stored)
    parts[place.part] = stored


def _check_once(checkpoint: Checkpoint, before: str | None, stored: str) -> None:
    """Refuse a second tensor for the same place, unless it is the same: PEFT writes biases twice with ``bias`` "all".

    Raises:
        UserError: names both.
    """
    if before is not None and not torch.equal(checkpoint.tensor(before), checkpoint.tensor(stored)):
        raise UserError(
            f"{checkpoint.weight_files[0]}: {shorten(before)} and {shorten(stored)} are two values for one place. "
            "Remove the one that is not meant."
        )


def _part_shape(adapter: Adapter, name: str, part: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a part of a published tensor."""
    return tuple(adapter.split(name, torch.empty(shape, device="meta"))[part].shape)


def _add_part(adapter: Adapter, own: str, stored: dict[str, str], outline: nn.Module) -> None:
    """Check the LoRA of one layer, which the adapter calls ``own``, and note it.

    Raises:
        UserError: a tensor is missing, too many, or has another shape than the config and the base make it.
    """
    settings, where = adapter.settings, adapter.checkpoint.weight_files[0]
    place = adapter.names.layers[own]
    base = outline.get_submodule(place.name)
    kind = type(base)
    if kind not in PAIRS:
        raise UserError(
            f"{where}: has LoRA of {own}, and PEFT has none for layers of this kind ({kind.__name__}). Remove it."
        )
    half_a, half_b = PAIRS[kind]
    needed = [half_a, half_b]
    if settings.lora_bias and kind is not nn.Embedding:
        needed.append("lora_B.bias")
    if settings.use_dora:
        needed.append(MAGNITUDE)
    if missing := [half for half in needed if half not in stored]:
        found = shorten(next(iter(stored.values())))
        raise UserError(f"{where}: has {found} but not {missing[0]} beside it. Copy the complete adapter there.")
    for half, name in stored.items():
        if half not in needed:
            key = {"lora_B.bias": "lora_bias", MAGNITUDE: "use_dora"}.get(half)
            if key is None:
                raise UserError(f"{where}: {shorten(name)} is not what LoRA of a {kind.__name__} has. Remove it.")
            raise UserError(
                f"{settings.file}:{key}: is false, and the adapter holds {shorten(name)}. Set it to true if it was "
                "trained with it."
            )
    if not settings.selects(own):
        raise UserError(
            f"{settings.file}:target_modules: does not select {own}, which the adapter has LoRA for: PEFT would leave "
            "it out. Correct target_modules, or the keys beside it that leave layers out."
        )
    if "lora_B.bias" in stored and base.bias is None:
        raise UserError(
            f"{where}: {shorten(stored['lora_B.bias'])} is a bias for {place.name}, which has none in the base, so it "
            "cannot be merged. Use it with PEFT, or train again with lora_bias false."
        )
    _check_pair_shapes(adapter, own, stored, base)
    layer = adapter.layers.setdefault(place.name, LoraLayer(kind, place.num_parts))
    rank, scaling = settings.rank(own), settings.scaling(own)
    bias, magnitude = stored.get("lora_B.bias"), stored.get(MAGNITUDE)
    layer.parts[place.part] = LoraPart(stored[half_a], stored[half_b], rank, scaling, bias, magnitude)


def _check_pair_shapes(adapter: Adapter, own: str, stored: dict[str, str], base: nn.Module) -> None:
    """Refuse tensors of a layer's LoRA that fit neither one another, nor the config's rank, nor the base."""
    settings, where = adapter.settings, adapter.checkpoint.weight_files[0]
    place, kind = adapter.names.layers[own], type(base)
    half_a, half_b = PAIRS[kind]
    shapes = {half: adapter.checkpoint.tensors[name].shape for half, name in stored.items()}
    a, b, rank = shapes[half_a], shapes[half_b], settings.rank(own)
    weight = _part_shape(adapter, f"{place.name}.weight", place.part, tuple(base.weight.shape))
    if len(a) != len(weight) or len(b) != len(weight) or b[1] != a[0]:
        raise UserError(
            f"{where}: LoRA of {own} has A of shape {a} and B of shape {b}, which do not go together. Copy the file "
            "again."
        )
    if a[0] != rank:
        raise UserError(
            f"{settings.source_of_rank(own)}: is {rank}, and the LoRA of {own} has rank {a[0]}. Correct r or "
            "rank_pattern: the scaling depends on it."
        )
    flat = (weight[1], weight[0]) if kind is nn.Embedding else weight
    expected = {half_a: (rank, *flat[1:]), half_b: (flat[0], rank, *[1] * (len(weight) - 2))}
    expected |= {"lora_B.bias": (flat[0],), MAGNITUDE: (1, flat[0], 1, 1) if kind is nn.Conv2d else (flat[0],)}
    for half, shape in shapes.items():
        if shape != expected[half]:
            raise UserError(
                f"{where}: {shorten(stored[half])} has shape {shape}, and {place.name} of shape {weight} in the base "
                f"needs {expected[half]}. Use the base it was trained on."
            )


def _check_saved_modules(adapter: Adapter, where: str) -> None:
    """Refuse an adapter that lacks weights of a module which its config says was trained in full."""
    for own, place in adapter.names.parameters.items():
        parts = own.split(".")
        modules = [".".join(parts[:length]) for length in range(1, len(parts))]
        for saved in adapter.settings.modules_to_save:
            # As PEFT looks for them: a module whose name ends so.
            inside = any(module.endswith(saved) for module in modules)
            if inside and place.part not in adapter.replaced.get(place.name, ()):
                raise UserError(
                    f"{where}: lacks {own}, and modules_to_save says that {shorten(saved)} was trained in full. Copy "
                    "the complete adapter there."
                )


def _check_ties(adapter: Adapter, where: str) -> None:
    """Refuse changes to one of two layers that share their weights in the base: the merge would change both."""
    member = language_model_of(adapter.config.llm_config)
    tied = {f"language_model.{name}" for name in (member.embeddings, member.output)}
    touched = sorted(adapter.changed & tied)
    if touched and adapter.config.llm_config.tie_word_embeddings:
        raise UserError(
            f"{where}: changes {touched[0]}, and in this base the embeddings and the output layer share their weights "
            "(tie_word_embeddings), so a merge would change both. Train without these two layers."
        )


def _check_embedded_ranks(adapter: Adapter, where: str) -> None:
    """Refuse a base with LoRA inside that cannot have been the adapter's start."""
    inside = {"language_model": adapter.config.use_llm_lora, "vision_model": adapter.config.use_backbone_lora}
    for name, layer in adapter.layers.items():
        rank = inside.get(name.split(".")[0])
        if other := next((part.rank for part in layer.parts.values() if rank and part.rank != rank), None):
            raise UserError(
                f"{where}: has LoRA of rank {other} for {name}, and the base has LoRA of rank {rank} inside, which it "
                "would replace. Use the base it was trained on, or merge the base's LoRA first "
                "(python tools/merge_lora.py BASE OUT) and name OUT with --base."
            )
