"""An adapter file layer by layer: which linear layers have LoRA, its rank and scaling, and what trained in full."""

import re
from collections.abc import Collection
from typing import NamedTuple

import torch
from peft.utils.other import get_pattern_key

from internvl.errors import UserError, shorten
from internvl.model.adapter import PEFT_PREFIX
from internvl.model.checkpoint import ADAPTER_CONFIG, Checkpoint
from internvl.model.hf_conversion import published_tensors
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig

LORA_TENSOR = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_magnitude_vector)")
# Settings of PEFT under which a file's B A is not what is added to the weight.
NOT_PLAIN = (
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
# Starts of LoRA that leave the base as it is; the others belong to a base that was changed.
PLAIN_STARTS = ("gaussian", "eva", "orthogonal")


class LoraLayer(NamedTuple):
    """LoRA on the linear layer ``name``: ΔW = scaling · B A, with A (rank, in) and B (out, rank).

    ``parts`` maps ``lora_A.weight``, ``lora_B.weight`` and, where they are there, ``lora_B.bias`` (out) and DoRA's
    ``lora_magnitude_vector`` (out) to their names in the file.
    """

    name: str
    parts: dict[str, str]
    rank: int
    scaling: float


class AdapterLayers:
    """What an adapter holds: ``lora``, its layers, and ``saved``, name → stored name of tensors trained in full.

    ``names`` are those of the base's tensors; by default the published ones of ``config``.

    Raises:
        UserError: it is not LoRA, is of a kind that is not exported, or does not fit the base.
    """

    def __init__(self, adapter: Checkpoint, config: InternVLChatConfig, *, names: Collection[str] | None = None):
        self.adapter, self.config = adapter, config
        check_plain(adapter)
        names = published_tensors(config).keys() if names is None else names
        parts: dict[str, dict[str, str]] = {}
        self.saved: dict[str, str] = {}
        for stored in adapter.tensors:
            name = stored.removeprefix(PEFT_PREFIX).replace(".default", "")
            name = name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
            lora = LORA_TENSOR.fullmatch(name)
            if f"{lora[1]}.weight" not in names if lora else name not in names:
                raise UserError(
                    f"{adapter.folder}: {shorten(stored)} has no place in its base. Name the base it was trained on "
                    "with --base; an adapter of the other layout is turned with tools/convert_to_hf.py [--back]."
                )
            if lora:
                parts.setdefault(lora[1], {})[lora[2]] = stored
            else:
                self.saved[name] = stored
        self.lora = [self._layer(name, found) for name, found in parts.items()]
        if not self.lora and not self.saved:
            raise UserError(f"{adapter.folder}: holds no weights. Copy the adapter again.")

    def _layer(self, name: str, parts: dict[str, str]) -> LoraLayer:
        adapter, file = self.adapter, self.adapter.folder / ADAPTER_CONFIG
        for half in ("lora_A.weight", "lora_B.weight"):
            if half not in parts:
                raise UserError(f"{adapter.folder}: lacks {name}.{half}. Copy the complete adapter there.")
        shapes = [adapter.tensors[parts[half]].shape for half in ("lora_A.weight", "lora_B.weight")]
        values = []
        for key, patterns in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
            own = adapter.config.get(patterns) or {}
            value = own.get(get_pattern_key(own, name), adapter.config.get(key)) if isinstance(own, dict) else None
            if type(value) not in (int, float) or not 0 < value <= 1e6:
                raise UserError(f"{file}:{key}: is {shorten(value)} for {name}. Give the number it was trained with.")
            values.append(value)
        rank, alpha = values
        if len(shapes[0]) != 2 or len(shapes[1]) != 2 or not shapes[0][0] == shapes[1][1] == rank:
            raise UserError(
                f"{file}: gives {name} the rank {rank}, and its tensors have shapes {shapes[0]} and {shapes[1]}. Copy "
                "config and weights of one adapter there."
            )
        return LoraLayer(name, parts, rank, alpha / rank ** (0.5 if adapter.config.get("use_rslora") else 1))

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
        named = self.adapter.config.get("modules_to_save") or []
        found = set()
        for name in self.saved:
            parts = name.split(".")
            modules = [".".join(parts[:number]) for number in range(1, len(parts))]
            found.add(next((m for m in modules if any(f".{m}".endswith(f".{n}") for n in named)), modules[-1]))
        return sorted(found)


def check_plain(adapter: Checkpoint) -> None:
    """Refuse an adapter whose B A does not simply belong to its base.

    Raises:
        UserError: names the setting.
    """
    config, file = adapter.config, adapter.folder / ADAPTER_CONFIG
    if config.get("peft_type") != "LORA":
        raise UserError(f"{file}:peft_type: is {shorten(config.get('peft_type'))}. Only LoRA adapters are exported.")
    key = next((key for key in NOT_PLAIN if config.get(key)), None)
    if config.get("bias", "none") != "none":
        key = "bias"
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in PLAIN_STARTS:
        key = "init_lora_weights"
    if key:
        raise UserError(
            f"{file}:{key}: is {shorten(config[key])}, and such adapters are not exported. Merge it with the program "
            "it was trained with, and convert the merged model."
        )
