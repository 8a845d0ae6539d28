"""Checkpoints with random weights in two layouts, the published one and transformers' own, for the benchmarks.

The benchmarks feed token ids, so there is no tokenizer; the special tokens have the places they have in a vocabulary
of the published kind.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from internvl.json_files import write_json
from internvl.model.checkpoint import Checkpoint
from internvl.model.hf_config import hf_config
from internvl.model.hf_conversion import DTYPE_NAMES
from internvl.model.hf_names import hf_names, split
from internvl.model.hf_view import published_tensors
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.loading import load_config
from internvl.model.safetensors_stream import SPELLING, TensorPlan

REPOSITORY = Path(__file__).resolve().parents[1]
PUBLISHED = REPOSITORY / "pretrained" / "InternVL2-2B"
# Of the published vocabulary of 92,553, <IMG_CONTEXT> is token 92,546, with six more behind it.
IMAGE_TOKENS_FROM_END = 7
# Ids below are <unk>, <s> and </s>; ids of the last few are special tokens.
FIRST_TEXT_TOKEN, SPECIAL_TOKENS = 3, 16
SHARD_BYTES = 2_000_000_000

# "mid" has the published vocabulary, so that its output layer has more of the work than that of the 2B model has;
# "even" keeps the 2B model's proportions instead: of layers (8), vision encoder (6) and output layer (1).
SIZES = {
    "tiny": {
        "vision": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 112},
        "llm": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512},
    },
    "mid": {
        "vision": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "image_size": 336},
        "llm": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "vocab_size": 92553},
    },
    "even": {
        "vision": {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "image_size": 448},
        "llm": {"hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 6, "vocab_size": 3072},
    },
}
FULL = "full"
# What the language models of the sizes have besides. A head of Qwen3 is as wide as the others' here.
LLMS = {
    "internlm2": {
        "architectures": ["InternLM2ForCausalLM"],
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000000},
        "bias": False,
        "pad_token_id": 2,
    },
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "rope_theta": 1000000, "pad_token_id": 2},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "rope_theta": 1000000, "head_dim": 64, "pad_token_id": 2},
}


def size_config(
    size: str, *, published: Path = PUBLISHED, vocab_size: int | None = None, llm: str = "internlm2"
) -> InternVLChatConfig:
    """Return the configuration of a size: of ``SIZES``, or "full", which is that of the folder ``published``.

    Args:
        size: name of the size.
        published: folder with ``config.json``, of "full" only.
        vocab_size: replaces the size's own.
        llm: key of ``LLMS``, the language model; "full" has that of its ``config.json``.

    Raises:
        UserError: ``published`` has no config.json of an InternVL-Chat model.
    """
    config = load_config(Checkpoint(published)) if size == FULL else scaled_config(**SIZES[size], llm_name=llm)
    config.llm_config.vocab_size = vocab_size or config.llm_config.vocab_size
    return config


def scaled_config(vision: dict, llm: dict, llm_name: str) -> InternVLChatConfig:
    """Return a configuration of the published architecture with other sizes; ``llm_name`` is a key of ``LLMS``."""
    return InternVLChatConfig(
        vision_config={
            **vision,
            "patch_size": 14,
            "intermediate_size": 4 * vision["hidden_size"],
            "qkv_bias": True,
            "qk_normalization": False,
            "norm_type": "layer_norm",
            "initializer_factor": 1.0,
        },
        llm_config={
            **LLMS[llm_name],
            **llm,
            "intermediate_size": 4 * llm["hidden_size"],
            "num_key_value_heads": llm["num_attention_heads"] // 2,
            "max_position_embeddings": 32768,
        },
        template="internlm2-chat",
        force_image_size=vision["image_size"],
        ps_version="v2",
        dynamic_image_size=True,
        use_thumbnail=True,
        max_dynamic_patch=12,
    )


def image_token_id(config: InternVLChatConfig) -> int:
    """Return the id of ``<IMG_CONTEXT>``."""
    return config.llm_config.vocab_size - IMAGE_TOKENS_FROM_END


def random_weights(
    shapes: dict[str, tuple[int, ...]], std: float, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield weights as an untrained model has them: norms one, biases zero, the rest normal."""
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        if name.endswith("bias"):
            weight = torch.zeros(shape)
        elif len(shape) == 1:
            weight = torch.ones(shape)
        else:
            weight = torch.randn(shape, generator=generator).mul_(std)
        yield name, weight.to(dtype)


def write_weights(folder: Path, config: InternVLChatConfig, dtype: torch.dtype) -> None:
    """Write random weights of the published layout to ``folder``, in files as large checkpoints are published in."""
    shapes = {name: tuple(tensor.shape) for name, tensor in published_tensors(config).items()}
    plan = TensorPlan({name: (shape, SPELLING[dtype]) for name, shape in shapes.items()}, max_bytes=SHARD_BYTES)
    plan.write(folder, random_weights(shapes, config.llm_config.initializer_range, dtype))


def write_pair(folder: Path, config: InternVLChatConfig, dtype: torch.dtype) -> tuple[Path, Path]:
    """Write the same random weights in both layouts; returns the two folders, the published layout's first.

    What is there already is kept.
    """
    ours, theirs = folder / "published", folder / "transformers"
    if not (ours / "config.json").is_file():
        ours.mkdir(parents=True, exist_ok=True)
        write_weights(ours, config, dtype)
        config.save_pretrained(ours)
    if not (theirs / "config.json").is_file():
        theirs.mkdir(parents=True, exist_ok=True)
        write_in_hf_layout(Checkpoint(ours), theirs, config)
    return ours, theirs


def write_in_hf_layout(checkpoint: Checkpoint, out: Path, config: InternVLChatConfig) -> None:
    """Write a checkpoint's weights and config as ``convert_to_hf`` does, without the tokenizer that is not there."""
    planned = {}
    for name, info in checkpoint.tensors.items():
        parts = split(name, torch.empty(info.shape, device="meta"), config)
        planned.update({new: (tuple(p.shape), info.dtype) for new, p in zip(hf_names(name), parts, strict=True)})
    TensorPlan(planned).write(
        out,
        (
            pair
            for name in checkpoint.tensors
            for pair in zip(hf_names(name), split(name, checkpoint.tensor(name), config), strict=True)
        ),
    )
    dtype = DTYPE_NAMES[next(iter(checkpoint.tensors.values())).dtype]
    write_json(out / "config.json", hf_config(config, {}, image_token_id=image_token_id(config), dtype=dtype))
