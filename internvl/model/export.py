"""Turn an adapter folder into one that another program takes: vLLM, LMDeploy, or PEFT on transformers' own classes.

An adapter of the published layout holds LoRA on ``attention.wqkv``, one matrix for query, key and value. On
transformers' layout they are three. ΔW = B A, so the three parts of ΔW share A, and each has its rows of B: the split
is exact, and :func:`adapter_from_hf` undoes it bit for bit.
"""

import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file

from internvl.errors import UserError, shorten
from internvl.json_files import write_json
from internvl.model.adapter import PEFT_PREFIX
from internvl.model.adapter_layers import A_KEYS, AdapterLayers, LoraLayer
from internvl.model.atomic_folder import atomic_folder, check_free
from internvl.model.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Checkpoint
from internvl.model.hf_config import original_config, parse_config
from internvl.model.hf_names import grouping, hf_names, join, split
from internvl.model.hf_view import published_tensors
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig

Value = TypeVar("Value")

# Ranks that ``vllm serve --max-lora-rank`` takes.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# What servers may read beside the adapter.
TEXT_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
HF_CLASS = {"base_model_class": "InternVLForConditionalGeneration", "parent_library": "transformers"}
# In auto_mapping of an exported adapter: what it was trained on, for the way back.
TRAINED_ON = "internvl_chat"


def _merge_first(adapter: Checkpoint) -> str:
    """Return the advice that always works."""
    return f"Merge it, and use the merged model: python tools/merge_lora.py {adapter.folder} MERGED"


def _merge_instead(adapter: Checkpoint) -> str:
    """Return the advice for an adapter of transformers' layout that has no equal in the published one."""
    merge = f"python tools/merge_lora.py {adapter.folder} MERGED"
    return f"Merge it instead, which writes the published layout at once: {merge}"


def published_config(base: Checkpoint) -> InternVLChatConfig:
    """Return the configuration of a base in either layout, as the published layout has it."""
    file = base.folder / "config.json"
    content = original_config(base.config, file) if base.config.get("model_type") == "internvl" else base.config
    return parse_config(content, file)


# ---- servers that take the published layout -------------------------------------------------------------------------


def _check_for_server(layers: AdapterLayers, server: str, *, same_everywhere: bool) -> None:
    """Refuse what a server cannot serve, or would leave out without a word.

    ``same_everywhere``: the server knows one rank and one scaling, and expects LoRA in every layer.

    Raises:
        UserError: names what it is, and the merge.
    """
    adapter, config = layers.adapter, layers.adapter.config
    found = None
    if config.get("use_dora"):
        found = f"use_dora is true, and {server} serves plain LoRA only"
    elif any("lora_B.bias" in layer.parts for layer in layers.lora):
        found = f"lora_bias is true, and {server} serves LoRA without bias"
    elif layers.saved:
        what = config.get("modules_to_save") or sorted(layers.saved)
        found = f"modules trained in full are in it ({shorten(what)}), and {server} serves LoRA only"
    else:
        other = [layer.name for layer in layers.lora if not layer.name.startswith("language_model.model.layers.")]
        if other:
            found = f"there is LoRA on {other[0]}, and {server} serves LoRA on the language model's layers only"
    if found is None and same_everywhere:
        settings = {(layer.rank, layer.scaling) for layer in layers.lora}
        kinds = Counter(layer.name.split(".", 4)[4] for layer in layers.lora)
        partial = [kind for kind, count in kinds.items() if count != layers.config.llm_config.num_hidden_layers]
        if len(settings) > 1:
            found = f"layers have different ranks or scalings ({shorten(sorted(settings))}), and {server} takes one"
        elif partial:
            found = f"{partial[0]} has LoRA in {kinds[partial[0]]} layers only, and {server} expects it in all"
    if found:
        raise UserError(f"{adapter.folder}: {found}. {_merge_first(adapter)}")


def vllm_rank(adapter: Checkpoint) -> int:
    """Return the ``--max-lora-rank`` with which vLLM serves an adapter.

    Raises:
        UserError: vLLM would refuse it, or leave a part of it out.
    """
    layers = AdapterLayers(adapter, published_config(adapter.base()))
    _check_for_server(layers, "vLLM", same_everywhere=False)
    rank = max(layer.rank for layer in layers.lora)
    if rank > VLLM_RANKS[-1]:
        raise UserError(f"{adapter.folder}: has rank {rank}, and vLLM takes {VLLM_RANKS[-1]}. {_merge_first(adapter)}")
    return next(allowed for allowed in VLLM_RANKS if allowed >= rank)


def export_for_vllm(adapter: Checkpoint, out: Path) -> int:
    """Write an adapter as vLLM takes it, which is as PEFT does, to a folder; returns the rank to serve it with.

    Raises:
        UserError: as of :func:`vllm_rank`.
    """
    rank = vllm_rank(adapter)
    layers = AdapterLayers(adapter, published_config(adapter.base()))
    _write_adapter(out, adapter, layers.tensors(), dict(adapter.config))
    return rank


def export_for_lmdeploy(adapter: Checkpoint, out: Path) -> int:
    """Write an adapter as LMDeploy's PyTorch engine takes it to a folder; returns its rank.

    That engine hands the adapter to the language model, so names lose ``language_model.``. It looks layers up by the
    last part of a target's name, and scales by lora_alpha / r.

    Raises:
        UserError: LMDeploy would misread it.
    """
    layers = AdapterLayers(adapter, published_config(adapter.base()))
    _check_for_server(layers, "LMDeploy", same_everywhere=True)
    first = layers.lora[0]
    tensors = {name.replace("language_model.", "", 1): tensor for name, tensor in layers.tensors().items()}
    config = {
        **_without_patterns(adapter.config),
        "r": first.rank,
        "lora_alpha": _exact_number(first.scaling * first.rank),
        "use_rslora": False,
        "target_modules": sorted({layer.name.split(".", 4)[4].rpartition(".")[2] for layer in layers.lora}),
    }
    _write_adapter(out, adapter, tensors, config)
    return first.rank


# ---- transformers' layout and back ----------------------------------------------------------------------------------


def adapter_to_hf(
    adapter: Checkpoint, out: str | Path, *, hf_base: Path | None = None, overwrite: bool = False
) -> int:
    """Write an adapter for ``InternVLForConditionalGeneration``; returns the number of tensors written.

    Args:
        adapter: adapter on a base of the published layout.
        out: folder to write.
        hf_base: the base in transformers' layout, to be recorded as the adapter's base.
        overwrite: replace ``out`` if it is there.

    Raises:
        UserError: the adapter has a part that transformers' classes have no place for, or ``out`` is not free.
    """
    out = Path(out)
    check_free(out, overwrite=overwrite)
    base = adapter.base()
    config = published_config(base)
    if hf_base is not None and _shape_of_model(published_config(Checkpoint(hf_base))) != _shape_of_model(config):
        raise UserError(f"{hf_base}: is not {base.folder} in transformers' layout. Convert that base first.")
    layers = AdapterLayers(adapter, config)
    if layers.is_hf:
        raise UserError(f"{adapter.folder}: has transformers' layout already. Pass --back for the published one.")
    tensors, lora = {}, []
    for layer in layers.lora:
        parts = {key: _split_part(layer, key, layers.tensor(stored), config) for key, stored in layer.parts.items()}
        for number, name in enumerate(hf_names(layer.name)):
            lora.append(layer._replace(name=name))
            tensors.update({f"{PEFT_PREFIX}{name}.{key}": values[number] for key, values in parts.items()})
    for name, stored in layers.saved.items():
        values = split(name, layers.tensor(stored), config)
        tensors.update({PEFT_PREFIX + new: value for new, value in zip(hf_names(name), values, strict=True)})
    renames = {name.rpartition(".")[0]: _hf_leaves(name) for name in published_tensors(config)}
    everything = {new for news in renames.values() for new in news}
    origin = {key: adapter.config.get(key) for key in ("base_model_name_or_path", "auto_mapping")}
    content = {
        **_lora_settings(adapter.config, lora, everything),
        "modules_to_save": rename_modules(layers.saved_modules(), renames) or None,
        "base_model_name_or_path": str(hf_base) if hf_base else None,
        "auto_mapping": {**HF_CLASS, TRAINED_ON: origin},
    }
    _write_adapter(out, adapter, tensors, content, text_files=False)
    return len(tensors)


def adapter_from_hf(adapter: Checkpoint, out: str | Path, *, overwrite: bool = False) -> int:
    """Write an adapter of transformers' layout, as :func:`adapter_to_hf` wrote it, for the published one.

    ``adapter`` is opened with the base in either layout. Returns the number of tensors written.

    Raises:
        UserError: query, key and value do not share their A (they were trained apart), or ``out`` is not free.
    """
    out = Path(out)
    check_free(out, overwrite=overwrite)
    recorded = adapter.config.get("auto_mapping")
    origin = recorded.get(TRAINED_ON) if isinstance(recorded, dict) else None
    origin = origin if isinstance(origin, dict) else {}
    base = adapter.base()
    config = published_config(base)
    published = {name: hf_names(name) for name in published_tensors(config)}
    layers = AdapterLayers(adapter, config)
    if not layers.is_hf:
        raise UserError(f"{adapter.folder}: has the published layout already. Leave out --back for transformers' own.")
    found = {layer.name: layer for layer in layers.lora}
    tensors, lora, taken = {}, [], set()
    for name, news in published.items():
        module = name.rpartition(".")[0]
        parts = [found.get(new) for new in _hf_leaves(name)] if name.endswith(".weight") else []
        if any(parts):
            joined = _join_layers(adapter, module, parts, config)
            lora.append(next(part for part in parts if part)._replace(name=module))
            tensors.update({f"{PEFT_PREFIX}{module}.{key}": value for key, value in joined.items()})
        present = [new for new in news if new in layers.saved]
        if present and len(present) < len(news):
            raise UserError(
                f"{adapter.folder}: {present[0]} is trained in full without the other parts of {name}. "
                f"{_merge_instead(adapter)}"
            )
        if present:
            tensors[PEFT_PREFIX + name] = join(name, [layers.tensor(layers.saved[new]) for new in news], config)
            taken.update(news)
    renames: dict[str, tuple[str, ...]] = {}
    for name in published:
        renames.update({new: (name.rpartition(".")[0],) for new in _hf_leaves(name)})
    content = {
        **_lora_settings(adapter.config, lora, {name.rpartition(".")[0] for name in published}),
        "modules_to_save": rename_modules(layers.saved_modules(), renames) or None,
        "base_model_name_or_path": origin.get("base_model_name_or_path") or str(base.folder),
        "auto_mapping": origin.get("auto_mapping"),
    }
    _write_adapter(out, adapter, tensors, content)
    return len(tensors)


def _shape_of_model(config: InternVLChatConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors, and how query, key and value rows alternate."""
    shapes = {name: tuple(tensor.shape) for name, tensor in published_tensors(config).items()}
    return shapes | {"wqkv": grouping("language_model", config)}


def _hf_leaves(name: str) -> tuple[str, ...]:
    """Return the modules of transformers' layout that hold a published tensor (its name ends in the parameter's)."""
    module, _, parameter = name.rpartition(".")
    if parameter in ("weight", "bias"):
        return hf_names(module)
    return tuple(new.rpartition(".")[0] for new in hf_names(name))


def _split_part(layer: LoraLayer, key: str, tensor: torch.Tensor, config: InternVLChatConfig) -> list[torch.Tensor]:
    """Return what each part of a joint matrix gets of one LoRA tensor: A whole, of the others its rows."""
    if key in A_KEYS:
        return [tensor.clone() for _ in hf_names(layer.name)]
    return [part.contiguous() for part in split(layer.name, tensor, config)]


def half_a(layer: LoraLayer) -> str:
    """Return the stored name of a layer's A."""
    return next(stored for key, stored in layer.parts.items() if key in A_KEYS)


def _join_layers(
    adapter: Checkpoint, name: str, parts: list[LoraLayer | None], config: InternVLChatConfig
) -> dict[str, torch.Tensor]:
    """Return the LoRA tensors of the joint matrix ``name``, whose parts have the LoRA ``parts``.

    Raises:
        UserError: a part has none, or they differ in A, rank, scaling or kind: no single LoRA equals them.
    """
    first = parts[0]
    same = all(
        part is not None
        and (part.rank, part.scaling, part.parts.keys()) == (first.rank, first.scaling, first.parts.keys())
        and torch.equal(adapter.tensor(half_a(part)), adapter.tensor(half_a(first)))
        for part in parts
        if first is not None
    )
    if first is None or not same:
        raise UserError(
            f"{adapter.folder}: query, key and value of {name} have LoRA of their own, and no single LoRA equals "
            f"them. {_merge_instead(adapter)}"
        )
    return {
        key: adapter.tensor(stored)
        if key in A_KEYS
        else join(name, [adapter.tensor(part.parts[key]) for part in parts if part], config)
        for key, stored in first.parts.items()
    }


# ---- adapter_config.json --------------------------------------------------------------------------------------------


def _exact_number(value: float) -> int | float:
    """Return a whole number as int, as PEFT writes it."""
    return int(value) if float(value).is_integer() else value


def _without_patterns(config: dict) -> dict:
    """Return an adapter's settings without those that choose layers by name."""
    chosen_by_name = ("exclude_modules", "layers_to_transform", "layers_pattern")
    return {**config, **dict.fromkeys(chosen_by_name), "rank_pattern": {}, "alpha_pattern": {}}


def _lora_settings(config: dict, lora: Collection[LoraLayer], everything: Collection[str]) -> dict:
    """Return an adapter's settings with the targets, ranks and alphas of ``lora``.

    ``everything`` holds the names of all modules of the model.
    """
    content = _without_patterns(config)
    if not lora:
        return {**content, "target_modules": []}
    root = bool(config.get("use_rslora"))
    alphas = {layer.name: _exact_number(layer.scaling * layer.rank ** (0.5 if root else 1)) for layer in lora}
    ranks = {layer.name: layer.rank for layer in lora}
    rank, alpha = (
        config[key] if config[key] in used.values() else Counter(used.values()).most_common(1)[0][0]
        for key, used in (("r", ranks), ("lora_alpha", alphas))
    )
    return {
        **content,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(_by_kind(dict.fromkeys(ranks, True), everything)),
        "rank_pattern": {key: value for key, value in _by_kind(ranks, ranks).items() if value != rank},
        "alpha_pattern": {key: value for key, value in _by_kind(alphas, alphas).items() if value != alpha},
    }


def _by_kind(values: Mapping[str, Value], everything: Iterable[str]) -> dict[str, Value]:
    """Return the value of each module by the last two parts of its name where all modules of that kind share it."""

    def kind(name: str) -> str:
        return ".".join(name.split(".")[-2:])

    members: dict[str, list[str]] = {}
    for name in everything:
        members.setdefault(kind(name), []).append(name)
    found = {}
    for name, value in values.items():
        shared = all(other in values and values[other] == value for other in members[kind(name)])
        found[kind(name) if shared else name] = value
    return found


def rename_modules(names: Iterable[str], renames: dict[str, tuple[str, ...]]) -> list[str]:
    """Return the largest modules of the other layout that hold exactly the leaves of each module in ``names``.

    ``renames`` maps each leaf module (one with weights of its own) to its names in the other layout. Example:
    ``mlp1``, with the leaves mlp1.0, mlp1.1 and mlp1.3, becomes ``model.multi_modal_projector``.
    """
    everything = {new for news in renames.values() for new in news}
    found = []
    for name in names:
        wanted = {new for leaf, news in renames.items() if leaf == name or leaf.startswith(f"{name}.") for new in news}
        while wanted:
            best = min(wanted)
            prefix = best
            while "." in prefix:
                prefix = prefix.rpartition(".")[0]
                below = {leaf for leaf in everything if leaf.startswith(f"{prefix}.")}
                if not below <= wanted:
                    break
                best = prefix
            found.append(best)
            wanted = {leaf for leaf in wanted if leaf != best and not leaf.startswith(f"{best}.")}
    return sorted(set(found))


def _write_adapter(
    out: Path, adapter: Checkpoint, tensors: dict[str, torch.Tensor], config: dict, *, text_files: bool = True
) -> None:
    """Write an adapter folder completely or not at all.

    Args:
        out: folder to write.
        adapter: what it was made of; its tokenizer is copied with ``text_files``.
        tensors: content of ``adapter_model.safetensors``.
        config: content of ``adapter_config.json``.
        text_files: whether to copy the tokenizer and the chat template.
    """
    with atomic_folder(out) as partial:
        save_file(tensors, partial / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        write_json(partial / ADAPTER_CONFIG, config)
        for pattern in TEXT_FILES if text_files else ():
            for file in adapter.folder.glob(pattern):
                shutil.copyfile(file, partial / file.name)
