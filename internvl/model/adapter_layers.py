"""An adapter layer by layer, as exporting it needs: under the names of its own layout, with its stored tensors."""

from typing import NamedTuple

import torch
from torch import nn

from internvl.errors import UserError, shorten
from internvl.model.adapter import PEFT_PREFIX
from internvl.model.adapter_reading import MAGNITUDE, PAIRS, read_adapter
from internvl.model.checkpoint import ADAPTER_CONFIG, Checkpoint
from internvl.model.hf_names import hf_names
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.lora import LoraPart

A_KEYS = ("lora_A.weight", "lora_embedding_A")


class LoraLayer(NamedTuple):
    """LoRA on the linear layer ``name``: ΔW = scaling · B A, with A (rank, in) and B (out, rank).

    ``parts`` maps ``lora_A.weight``, ``lora_B.weight`` and, where they are there, ``lora_B.bias`` (out) and DoRA's
    ``lora_magnitude_vector`` (out) to their names in the file; of embeddings, ``lora_embedding_A`` and ``_B``.
    """

    name: str
    parts: dict[str, str]
    rank: int
    scaling: float


class AdapterLayers:
    """What an adapter holds: ``lora``, its layers, and ``saved``, name → stored name of tensors trained in full.

    Names are those of the layout that the adapter was trained on; ``is_hf`` says whether it is transformers'.

    Raises:
        UserError: it is not read (see ``read_adapter``), or trained biases that have no form in an export.
    """

    def __init__(self, adapter: Checkpoint, config: InternVLChatConfig):
        self.adapter, self.config = adapter, config
        if adapter.config.get("bias", "none") != "none":
            raise UserError(
                f"{adapter.folder / ADAPTER_CONFIG}:bias: is {shorten(adapter.config['bias'])}, and trained biases "
                "are not exported. Merge it, and use the merged model: "
                f"python tools/merge_lora.py {adapter.folder} MERGED"
            )
        found = read_adapter(adapter, config)
        self.is_hf = found.names.layout.is_hf
        self.modules_to_save = found.settings.modules_to_save

        def own_name(name: str, part: int) -> str:
            return hf_names(name)[part] if self.is_hf else name

        self.lora = [
            LoraLayer(own_name(name, number), _stored_parts(layer.kind, part), part.rank, part.scaling)
            for name, layer in found.layers.items()
            for number, part in sorted(layer.parts.items())
        ]
        self.saved = {
            own_name(name, number): stored
            for name, parts in found.replaced.items()
            for number, stored in sorted(parts.items())
        }

    def tensor(self, stored: str) -> torch.Tensor:
        return self.adapter.tensor(stored)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors under the names PEFT gives them in a file."""
        found = {
            f"{PEFT_PREFIX}{layer.name}.{key}": self.tensor(stored)
            for layer in self.lora
            for key, stored in layer.parts.items()
        }
        return found | {PEFT_PREFIX + name: self.tensor(stored) for name, stored in self.saved.items()}

    def saved_modules(self) -> list[str]:
        """Return the full names of the modules trained in full; the config may name them by their last parts."""
        found = set()
        for name in self.saved:
            parts = name.split(".")
            modules = [".".join(parts[:number]) for number in range(1, len(parts))]
            named = (m for m in modules if any(f".{m}".endswith(f".{n}") for n in self.modules_to_save))
            found.add(next(named, modules[-1]))
        return sorted(found)


def _stored_parts(kind: type[nn.Module], part: LoraPart) -> dict[str, str]:
    """Return the tensors of a layer's LoRA by the last parts of the names that PEFT gives them."""
    suffix = "" if kind is nn.Embedding else ".weight"
    half_a, half_b = PAIRS[kind]
    named = {
        half_a + suffix: part.lora_a,
        half_b + suffix: part.lora_b,
        "lora_B.bias": part.bias,
        MAGNITUDE: part.magnitude,
    }
    return {key: stored for key, stored in named.items() if stored is not None}
