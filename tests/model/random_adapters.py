"""Adapters over PEFT's options, made by PEFT itself: with random settings, or with given ones."""

import json
import random
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

LANGUAGE = ["attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
VISION = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
PROJECTOR = ["mlp1.1", "mlp1.3"]
REST = ["language_model.output", "tok_embeddings", "patch_embedding"]


def random_settings(seed: int) -> dict:
    """Return LoRA settings: which layers, rank and alpha of each by all three kinds of pattern, and the variants."""
    rng = random.Random(seed)
    lora_bias = rng.random() < 0.3
    # Layers of the language model have no bias, and PEFT has lora_bias for linear layers only.
    choice = VISION + PROJECTOR if lora_bias else LANGUAGE + VISION + PROJECTOR + REST
    targets = rng.sample(choice, rng.randint(1, min(5, len(choice))))
    patterns = [
        rng.choice(targets),  # the end of a name
        "language_model.model.layers.0.attention.wo",
        r".*\.layers\.1\..*",
        "vision_model.encoder.layers.2.mlp.fc1",
        r"(attn\.qkv|feed_forward\.w[13])",
    ]
    save = rng.choice([None, None, ["mlp1"], ["norm"], ["vision_model.encoder.layers.0"]])
    if save and any(target.startswith(name) for name in save for target in targets):
        save = None
    return {
        "r": rng.choice([1, 2, 4, 8, 12]),
        "lora_alpha": rng.choice([1, 3, 8, 16, 64]),
        "target_modules": targets,
        # In the order in which PEFT saves them: with another it would not read its own adapter again.
        "rank_pattern": {pattern: rng.randint(1, 9) for pattern in sorted(rng.sample(patterns, rng.randint(0, 3)))},
        "alpha_pattern": {pattern: rng.randint(1, 40) for pattern in rng.sample(patterns, rng.randint(0, 3))},
        "use_rslora": rng.random() < 0.4,
        "use_dora": not lora_bias and rng.random() < 0.4,
        "lora_bias": lora_bias,
        "modules_to_save": save,
        "bias": rng.choice(["none", "none", "all", "lora_only"]),
        "init_lora_weights": True if lora_bias else rng.choice([True, False, "gaussian"]),
        "lora_dropout": 0.1,
    }


def wrap(model: nn.Module, settings: dict, seed: int = 0) -> PeftModel:
    """Return the model with LoRA whose every tensor is random, as after a training, in evaluation mode."""
    peft = get_peft_model(model, LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.mul_(1 + 0.1 * noise) if "magnitude" in name else parameter.add_(0.05 * noise)
    return peft.eval()


def save(peft: PeftModel, folder: Path, base: Path) -> Path:
    """Write the adapter as PEFT does, with the path of its base."""
    for config in peft.peft_config.values():
        config.base_model_name_or_path = str(base)
    peft.save_pretrained(folder)
    return folder


def rewrite(folder: Path, rename=lambda name: name, change=lambda name, tensor: tensor, **config) -> Path:
    """Change names, tensors and config entries of an adapter folder in place."""
    file = folder / "adapter_model.safetensors"
    tensors = {rename(name): change(name, tensor) for name, tensor in load_file(file).items()}
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, file, metadata={"format": "pt"})
    content = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(content | config))
    return folder
