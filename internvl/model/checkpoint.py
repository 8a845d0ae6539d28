"""The one reader of checkpoint folders: what kind a folder is, and its tensors one at a time."""

import hashlib
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from internvl.errors import UserError, shorten
from internvl.json_files import read_object
from internvl.model.safetensors_stream import DTYPE_OF_SPELLING, SPELLING
from internvl.repository import REPOSITORY

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
OLDER_ADAPTER_WEIGHTS = "adapter_model.bin"
# The original trainer wrapped each half of the model on its own, so its LoRA names hold PEFT's prefix in the middle.
EMBEDDED_PREFIX = re.compile(r"^(vision_model|language_model)\.base_model\.model\.")


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is; ``dtype`` in safetensors' spelling (F32, BF16, …)."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class Checkpoint:
    """A checkpoint folder: a base or merged model, an adapter, or a full model with embedded LoRA weights.

    Tensors are read one at a time and never with pickle. ``base`` is where an adapter's base is, if not where the
    adapter says. Raises:
        UserError: the folder is missing, incomplete or of no known kind, or a whole model with a ``base``.
    """

    # Whether the folder's files hold the tensors under these names.
    is_published = True

    def __init__(self, folder: str | Path, *, base: str | Path | None = None):
        self.folder = Path(folder)
        self._base = base
        if not self.folder.is_dir():
            raise UserError(
                f"{self.folder}: there is no such checkpoint folder. Correct the path; the published weights are got "
                "with tools/download_pretrained.sh, a small base is pretrained/InternVL2-Tiny."
            )
        self.is_adapter = (self.folder / ADAPTER_CONFIG).is_file()
        if not self.is_adapter and not (self.folder / "config.json").is_file():
            raise UserError(
                f"{self.folder}: holds neither config.json nor {ADAPTER_CONFIG}. Name a folder with a checkpoint."
            )
        if base is not None and not self.is_adapter:
            raise UserError(f"--base: {self.folder} is a whole model, not an adapter. Remove the flag.")

    @cached_property
    def config(self) -> dict:
        """The parsed config.json, or adapter_config.json of an adapter."""
        return read_object(self.folder / (ADAPTER_CONFIG if self.is_adapter else "config.json"), "Restore the file")

    @cached_property
    def weight_files(self) -> list[Path]:
        """The files that hold tensors, in order of their names."""
        if self.is_adapter:
            files = [self.folder / ADAPTER_WEIGHTS]
            older = self.folder / OLDER_ADAPTER_WEIGHTS
            if older.is_file() and not files[0].is_file():
                return [older]
        else:
            files = sorted(self.folder.glob("model*.safetensors")) or sorted(self.folder.glob("pytorch_model*.bin"))
        index = next(iter(self.folder.glob("*.safetensors.index.json")), None)
        if index is not None:
            files = sorted({self.folder / name for name in _read_weight_map(index).values()})
        missing = [file.name for file in files if not file.is_file()]
        if missing or not files:
            what = f"lacks {missing[0]}" if missing else "holds no weights (model*.safetensors)"
            raise UserError(f"{self.folder}: {what}. Copy the complete checkpoint there.")
        return files

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Name → where each tensor is."""
        found = {}
        for file in self.weight_files:
            if file.suffix == ".bin":
                for name, tensor in self._torch_file(file).items():
                    found[name] = TensorInfo(file, tuple(tensor.shape), SPELLING.get(tensor.dtype, str(tensor.dtype)))
                continue
            try:
                with safe_open(file, framework="pt") as reader:
                    for name in reader.keys():  # noqa: SIM118 - not a mapping
                        part = reader.get_slice(name)
                        found[name] = TensorInfo(file, tuple(part.get_shape()), part.get_dtype())
            except (SafetensorError, OSError) as err:
                raise UserError(f"{file}: is damaged or cut off ({err}). Copy the file again.") from err
        for name, info in found.items():
            if info.dtype not in DTYPE_OF_SPELLING:
                raise UserError(
                    f"{info.file}: {name} has the dtype {info.dtype}. Use weights in {', '.join(DTYPE_OF_SPELLING)}; "
                    "quantised ones are not read."
                )
        return found

    @staticmethod
    def _torch_file(file: Path) -> dict[str, torch.Tensor]:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as err:  # the reader stumbles in many ways over a damaged file
            reason = str(err).partition("\n")[0]  # torch adds advice to run what is in the file
            raise UserError(
                f"{file}: is damaged, or holds more than tensors ({reason}). Copy the file again, or use the "
                "checkpoint's safetensors files."
            ) from err
        if not isinstance(content, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
            raise UserError(f"{file}: holds something else than named tensors. Copy the file again.")
        return content

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor, as stored."""
        file = self.tensors[name].file
        if file.suffix == ".bin":
            return self._torch_file(file)[name]
        with safe_open(file, framework="pt") as reader:
            return reader.get_tensor(name)

    @property
    def has_embedded_lora(self) -> bool:
        """Whether this is a full model whose LoRA weights are not merged, as the original trainer saved it."""
        return not self.is_adapter and any(".lora_A." in name for name in self.tensors)

    def sha256(self) -> str:
        """Return the SHA-256 over all weight files in order of their names."""
        digest = hashlib.sha256()
        for file in self.weight_files:
            with open(file, "rb") as stream:
                while block := stream.read(1 << 24):
                    digest.update(block)
        return digest.hexdigest()

    def base(self) -> "Checkpoint":
        """Return the checkpoint an adapter was trained on: the one this was opened with, or the recorded one.

        A relative path is looked for from the working directory, then from the repository root.
        """
        recorded = str(self._base) if self._base else self.config.get("base_model_name_or_path")
        key = "--base" if self._base else f"{self.folder / ADAPTER_CONFIG}:base_model_name_or_path"
        for candidate in (recorded, REPOSITORY / recorded) if isinstance(recorded, str) and recorded else ():
            if os.path.isdir(candidate):
                base = Checkpoint(candidate)
                if base.is_adapter:
                    raise UserError(
                        f"{key}: is {shorten(recorded)}, an adapter itself. Name the whole model that it was trained "
                        "on, with --base."
                    )
                return base
        raise UserError(
            f"{key}: is {shorten(recorded)}, which is not there. Name the folder of the base model with --base"
            f"{'.' if self._base else ', or correct the entry.'}"
        )

    @property
    def recorded_base_sha256(self) -> str | None:
        """The hash of the base's weights that an adapter of ours carries."""
        mapping = self.config.get("auto_mapping")
        recorded = mapping.get("base_model_sha256") if isinstance(mapping, dict) else None
        return recorded if isinstance(recorded, str) else None


def _read_weight_map(index: Path) -> dict[str, str]:
    """Return tensor → file name of an index file.

    Raises:
        UserError: it has no such map, or names files that are not beside it.
    """
    weight_map = read_object(index, "Copy the file again").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}:weight_map: is {shorten(weight_map)}, not tensor → file. Copy the file again.")
    for tensor, name in weight_map.items():
        # Files of a hub's cache are links, so it is the name that must not lead away.
        if not isinstance(name, str) or Path(name).name != name or Path(name).suffix not in (".safetensors", ".bin"):
            raise UserError(
                f"{index}:weight_map: {shorten(tensor)} is in {shorten(name)}, not a weight file of this folder. "
                "Copy the file again."
            )
    return weight_map
