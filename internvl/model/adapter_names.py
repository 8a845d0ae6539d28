"""Whose tensor is it: the names in an adapter file, and the layers of the published model they belong to.

PEFT names tensors by their place in the model that it wrapped: ``base_model.model.`` and the layer, then ``lora_A``.
People wrap the whole model or one part of it, in this layout or in transformers' own (-hf), and some save a state dict
in which the adapter's name (``default``) still stands.
"""

import re
from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

from internvl.errors import UserError, shorten
from internvl.model.checkpoint import EMBEDDED_PREFIX
from internvl.model.hf_names import hf_names

PEFT_PREFIX = "base_model.model."
LORA_TENSOR = re.compile(
    r"(?P<layer>.+?)\.(?P<half>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?P<adapter>(?!(?:weight|bias)$)[^.]+))?(?:\.(?P<kind>weight|bias))?"
)
SAVED_MODULE = re.compile(r"\.modules_to_save\.(?P<adapter>[^.]+)\.")


class StoredTensor(NamedTuple):
    """A tensor of an adapter file, taken apart.

    ``name`` is the layer's for LoRA, with ``half`` saying which tensor of it this is (``lora_A``, ``lora_B.bias``, …),
    and the parameter's for one that replaces the base's (``half`` is empty). ``adapter`` is the adapter's name, where
    it still stands in there.
    """

    name: str
    half: str
    adapter: str | None


class Layout(NamedTuple):
    """A model that adapters are trained on: a part of ours, or of the -hf copy."""

    words: str
    prefix: str  # of the part in its whole model
    is_hf: bool


LAYOUTS = (
    Layout("the whole model", "", False),
    Layout("language_model alone", "language_model.", False),
    Layout("language_model.model alone", "language_model.model.", False),
    Layout("vision_model alone", "vision_model.", False),
    Layout("the -hf copy", "", True),
    Layout("the -hf copy without its output layer", "model.", True),
    Layout("language_model of the -hf copy alone", "model.language_model.", True),
    Layout("vision_tower of the -hf copy alone", "model.vision_tower.", True),
)


class Place(NamedTuple):
    """Where a tensor goes: the published name, and which part of it (query, key, value) an -hf name stands for."""

    name: str
    part: int
    num_parts: int


class NameMap:
    """The names that one layout has for the published parameters and layers.

    ``parameters`` are the published model's. A layer is a parameter's name without its end.
    """

    def __init__(self, layout: Layout, parameters: Iterable[str]):
        self.layout = layout
        self.parameters: dict[str, Place] = {}
        for name in parameters:
            own = hf_names(name) if layout.is_hf else (name,)
            for part, stored in enumerate(own):
                if stored.startswith(layout.prefix):
                    self.parameters[stored.removeprefix(layout.prefix)] = Place(name, part, len(own))

    @cached_property
    def layers(self) -> dict[str, Place]:
        return {
            own.rpartition(".")[0]: place._replace(name=place.name.rpartition(".")[0])
            for own, place in self.parameters.items()
            if own.endswith((".weight", ".bias"))
        }

    def find(self, tensor: StoredTensor) -> Place | None:
        return (self.layers if tensor.half else self.parameters).get(tensor.name)


def take_apart(stored: str, where: str) -> StoredTensor | None:
    """Return what a name in an adapter file says; ``where`` begins the message.

    None for PEFT's copy of the weights that a module had before it was trained in full, which nothing reads.

    Raises:
        UserError: a tensor of another kind than LoRA, DoRA or a module trained in full.
    """
    name = EMBEDDED_PREFIX.sub(r"\1.", stored.removeprefix(PEFT_PREFIX))
    if found := LORA_TENSOR.fullmatch(name):
        half = found["half"] + (".bias" if found["kind"] == "bias" else "")
        return StoredTensor(found["layer"].removesuffix(".base_layer"), half, found["adapter"])
    if ".original_module." in name:  # with ``bias`` "all" PEFT writes the biases of these, too
        return None
    if other := next((part for part in name.split(".") if part.startswith(("lora_", "hada_", "token_adapter"))), None):
        raise UserError(
            f"{where}: {shorten(stored)} is not a tensor of LoRA or DoRA ({shorten(other)}). Read the adapter with "
            "the PEFT version that wrote it, merge it there, and use the whole model."
        )
    adapter = found["adapter"] if (found := SAVED_MODULE.search(name)) else None
    name = SAVED_MODULE.sub(".", name).replace(".base_layer.", ".")
    return StoredTensor(name, "", adapter)


def choose_map(tensors: dict[str, StoredTensor], parameters: Iterable[str], where: str) -> NameMap:
    """Return the names of the model that an adapter was trained on.

    Args:
        tensors: stored name → the name taken apart.
        parameters: the published names of the base's parameters.
        where: begins the message.

    Raises:
        UserError: a tensor belongs to no layer of the base, under any of the layouts.
    """
    parameters = list(parameters)
    maps = [NameMap(layout, parameters) for layout in LAYOUTS]
    chosen = max(maps, key=lambda names: sum(names.find(tensor) is not None for tensor in tensors.values()))
    stored = next((stored for stored, tensor in tensors.items() if chosen.find(tensor) is None), None)
    if stored is None:
        return chosen
    # The same name with another number is a layer of a deeper model: the base is what is wrong.
    wanted, layer = tensors[stored].name, re.compile(r"\d+")
    known = chosen.layers if tensors[stored].half else chosen.parameters
    if any(layer.sub("#", own) == layer.sub("#", wanted) for own in known):
        raise UserError(
            f"{where}: {shorten(stored)} has no place in the base model, which has fewer layers. Use the base it was "
            "trained on."
        )
    raise UserError(
        f"{where}: {shorten(stored)} is not a layer of an InternVL-Chat model, as this one or the -hf copy names "
        "layers. Merge the adapter with the program that trained it, and use the whole model."
    )
