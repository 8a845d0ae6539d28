"""Write safetensors files tensor by tensor, so that a model larger than memory can be written.

The format (github.com/huggingface/safetensors, README): eight bytes with the header's length, little endian; the
header, JSON of name → dtype, shape and byte range; then the tensors' bytes, back to back.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch

BYTES_PER_ELEMENT = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}
SPELLING = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
DTYPE_OF_SPELLING = {text: dtype for dtype, text in SPELLING.items()}


class TensorPlan:
    """Names, shapes and dtypes of a checkpoint to write, cut into files of at most ``max_bytes``."""

    def __init__(self, tensors: dict[str, tuple[tuple[int, ...], str]], max_bytes: int = 5_000_000_000):
        self.tensors = tensors
        self.shards: list[list[str]] = [[]]
        size = 0
        for name in tensors:
            if self.shards[-1] and size + self.num_bytes(name) > max_bytes:
                self.shards.append([])
                size = 0
            self.shards[-1].append(name)
            size += self.num_bytes(name)

    def num_bytes(self, name: str) -> int:
        shape, dtype = self.tensors[name]
        return torch.Size(shape).numel() * BYTES_PER_ELEMENT[dtype]

    def file_name(self, shard: int) -> str:
        if len(self.shards) == 1:
            return "model.safetensors"
        return f"model-{shard + 1:05d}-of-{len(self.shards):05d}.safetensors"

    def write(self, folder: Path, values: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Write all tensors; ``values`` yields them in the plan's order, each already of its planned dtype.

        Several files get a ``model.safetensors.index.json``.
        """
        values = iter(values)
        for number, names in enumerate(self.shards):
            with open(folder / self.file_name(number), "wb") as stream:
                stream.write(self.header(names))
                for expected in names:
                    name, tensor = next(values)
                    shape, dtype = self.tensors[name]
                    assert (name, tuple(tensor.shape), SPELLING[tensor.dtype]) == (expected, tuple(shape), dtype)
                    # Any dtype's bytes, bfloat16's too, which numpy does not know.
                    stream.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        if len(self.shards) > 1:
            self.write_index(folder)

    def header(self, names: list[str]) -> bytes:
        """Return the length field and header of a file with these tensors."""
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            shape, dtype = self.tensors[name]
            end = offset + self.num_bytes(name)
            entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors start aligned
        return len(text).to_bytes(8, "little") + text

    def write_index(self, folder: Path) -> None:
        weight_map = {name: self.file_name(number) for number, names in enumerate(self.shards) for name in names}
        total = sum(self.num_bytes(name) for name in self.tensors)
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
