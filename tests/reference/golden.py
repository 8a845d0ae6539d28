"""Reading golden values: run-length lists, images by formula, digests, and tiny checkpoints."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from internvl.model.internvl_chat.conversation import IMG_CONTEXT_TOKEN
from internvl.model.internvl_chat.image_processing_internvl_chat import IMAGENET_STD
from tests.reference.runner import Report


def read_json(path: Path) -> dict | list:
    return json.loads(path.read_text(encoding="utf-8"))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file; float16 becomes float32 (the stored values are exact), integers int64."""

    def widen(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            return tensor.float() if tensor.dtype == torch.float16 else tensor
        return tensor.long()

    return {name: widen(tensor) for name, tensor in load_file(path).items()}


def fields_of(tensors: dict[str, torch.Tensor], case: str) -> dict[str, torch.Tensor]:
    """The entries called ``<case>.<field>``, by field."""
    return {name[len(case) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(case + ".")}


def expand(runs: list) -> list:
    """Undo run-length coding: ``[5, [7, 3]]`` is ``[5, 7, 7, 7]``."""
    return [value for run in runs for value in ([run[0]] * run[1] if isinstance(run, list) else [run])]


def expand_text(text: str) -> str:
    """Write out ``{{IMG_CONTEXT x N}}``."""
    return re.sub(r"\{\{IMG_CONTEXT x (\d+)\}\}", lambda match: IMG_CONTEXT_TOKEN * int(match[1]), text)


def make_image(width: int, height: int, k: int) -> Image.Image:
    """The golden values' image formula, RGB."""
    x, y = np.arange(width, dtype=np.int64)[None], np.arange(height, dtype=np.int64)[:, None]
    red = x * (3 + k) + 7 * y + 11 * k
    green = x * x // (5 + k) + y * (2 + k % 5) + 17 * k
    blue = x * y // (9 + k) + (x ^ y) + 29 * k
    return Image.fromarray((np.stack([red, green, blue], axis=-1) % 256).astype(np.uint8))


def sha256(content: bytes | Image.Image | torch.Tensor) -> str:
    """SHA-256 of bytes, of an image's bytes, or of a tensor's values in C order (float32, or int64)."""
    if isinstance(content, Image.Image):
        content = content.tobytes()
    elif isinstance(content, torch.Tensor):
        content = content.contiguous().numpy().tobytes()
    return hashlib.sha256(content).hexdigest()


def compare_pixels(report: Report, name: str, got: torch.Tensor, record: dict, *, jpeg: bool = False) -> None:
    """Compare a normalised image with its digest: exactly, or (other Pillow builds) samples and means.

    A sample may be one grey level off (JPEG: 0.05), a mean 2e-3.
    """
    if list(got.shape) != record["shape"]:
        report.check(name, False, f"shape {list(got.shape)}, not {record['shape']}")
        return
    if sha256(got) == record["sha256_f32"]:
        report.within(name, 0.0, 0.0)
        return
    step = 0.05 if jpeg else 1 / 255 / min(IMAGENET_STD) * 1.001
    parts = []  # how far off, in units of the tolerance
    if "sample_values" in record:
        samples = got.flatten()[torch.tensor(record["sample_flat_index"])].double()
        parts.append((samples - torch.tensor(record["sample_values"], dtype=torch.float64)).abs().max().item() / step)
    wanted = record.get("mean", record.get("tile_means"))
    means = got.double().flatten(1).mean(1) if isinstance(wanted, list) else got.double().mean()
    parts.append((means - torch.tensor(wanted, dtype=torch.float64)).abs().max().item() / 2e-3)
    report.within(name, max(parts) * step, step)


def find_image_token(inputs: dict[str, torch.Tensor], num_image_token: int) -> int:
    """Find the id of ``<IMG_CONTEXT>``: the one that stands ``num_image_token`` times per real tile in most cases."""
    votes: dict[int, int] = {}
    for name, flags in inputs.items():
        if name.endswith(".image_flags") and flags.sum():
            ids, counts = inputs[name.replace(".image_flags", ".input_ids")].unique(return_counts=True)
            for token in ids[counts == flags.sum() * num_image_token].tolist():
                votes[token] = votes.get(token, 0) + 1
    return max(votes, key=lambda token: votes[token])


def write_checkpoint(folder: Path, config: dict, weights: dict[str, torch.Tensor]) -> Path:
    """Write a loadable checkpoint folder of golden weights, with a tokenizer that knows ``<IMG_CONTEXT>`` alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, IMG_CONTEXT_TOKEN: 3}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab, [], unk_token="<unk>")), bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(folder)
    return folder
