"""Load any checkpoint folder: a base, a merged model, an adapter, or a full model with embedded LoRA weights."""

from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.utils import is_flash_attn_2_available
from transformers.utils.quantization_config import QuantizationConfigMixin

from internvl.errors import UserError, shorten
from internvl.json_files import check_characters, read_object
from internvl.limits import MAX_TOKEN_ID
from internvl.model.adapter_reading import read_adapter
from internvl.model.checkpoint import Checkpoint
from internvl.model.config_schema import check_config, check_shapes
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.conversation import IMG_CONTEXT_TOKEN
from internvl.model.internvl_chat.language_models import language_model_of
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.internvl_chat.tokenization import load_tokenizer
from internvl.model.lora import add_adapter, merge_adapter
from internvl.model.tiling import read_tiling

HF_MODEL_TYPE = "internvl"  # of transformers' own layout
# The small files beside a tokenizer's vocabulary; transformers writes their content again when it saves one.
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


class LoadedModel(NamedTuple):
    model: InternVLChatModel
    tokenizer: PreTrainedTokenizerFast


def choose_attention(dtype: torch.dtype, device: str = "cuda") -> str:
    """Return flash_attention_2 where it is installed and can run (a GPU, half precision), else sdpa."""
    usable = device != "cpu" and dtype in (torch.float16, torch.bfloat16) and is_flash_attn_2_available()
    return "flash_attention_2" if usable else "sdpa"


def source_of(checkpoint: Checkpoint) -> Checkpoint:
    """Return where a model's config and own weights are: the checkpoint itself, or an adapter's base.

    A base in transformers' layout is seen under the published names, so whoever reads it need not know.
    """
    if not checkpoint.is_adapter:
        return checkpoint
    base = checkpoint.base()
    if base.config.get("model_type") != HF_MODEL_TYPE:
        return base
    from internvl.model.hf_view import PublishedView  # which is made of modules that import this one

    return PublishedView(base)


def load_config(checkpoint: Checkpoint) -> InternVLChatConfig:
    """Return the model configuration of a checkpoint; an adapter's is its base's, but for how images are cut.

    Raises:
        UserError: config.json does not describe an InternVL-Chat model.
    """
    source = source_of(checkpoint)
    kind = source.config.get("model_type")
    if kind != "internvl_chat":
        advice = "Name a checkpoint of the published InternVL-Chat layout."
        if kind == HF_MODEL_TYPE:
            advice = f"Turn it into the published layout: python tools/convert_to_hf.py --back {source.folder} OUT"
        raise UserError(
            f"{source.folder / 'config.json'}: model_type is {shorten(kind)}, not 'internvl_chat'. {advice}"
        )
    file = source.folder / "config.json"
    check_config(source.config, file)
    try:
        config = InternVLChatConfig.from_dict(deepcopy(source.config))
        config.name_or_path = str(source.folder)
    except Exception as err:  # transformers' classes raise whatever a value of theirs makes them stumble over
        raise UserError(f"{file}: describes no model ({one_line(err)}). Restore the file.") from err
    for name, value in read_tiling(checkpoint.folder).items():
        setattr(config, name, value)
    check_shapes(config, file)
    return config


def load_model(
    path: str | Path | Checkpoint,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    attn_implementation: str | None = None,
    device_map: str | None = None,
    config: InternVLChatConfig | None = None,
    quantization_config: QuantizationConfigMixin | None = None,
    merge: bool = False,
) -> LoadedModel:
    """Load the model and tokenizer of a checkpoint folder, in eval mode.

    Args:
        path: the folder.
        dtype: of the weights.
        device: where to.
        attn_implementation: eager, sdpa or flash_attention_2; by default the fastest for ``dtype`` and ``device``.
        device_map: "auto" spreads the model over all devices (accelerate), instead of ``device``.
        config: replaces the checkpoint's own.
        quantization_config: transformers', for weights held in fewer bits.
        merge: whether an adapter's LoRA goes into the weights, which is faster to compute with, or stays beside them.

    Raises:
        UserError: the folder is missing, incomplete, or does not fit together.
    """
    checkpoint = path if isinstance(path, Checkpoint) else Checkpoint(path)
    source = source_of(checkpoint)
    config = config or load_config(checkpoint)
    check_complete(source, config)
    check_generation(source.folder)
    adapter = read_adapter(checkpoint, config) if checkpoint.is_adapter else None
    model = InternVLChatModel.from_pretrained(
        source.folder if source.is_published else None,
        config=config,
        state_dict=None if source.is_published else {name: source.tensor(name) for name in source.tensors},
        dtype=dtype,
        attn_implementation=attn_implementation or choose_attention(dtype, device),
        device_map=device_map,
        quantization_config=quantization_config,
        local_files_only=True,
        trust_remote_code=False,
    )
    if not source.is_published:
        model.generation_config = GenerationConfig.from_dict(deepcopy(source.generation))  # type: ignore[attr-defined]
    if adapter is not None:
        if merge and not (config.use_llm_lora or config.use_backbone_lora):
            merge_adapter(model, adapter, source)
        else:
            add_adapter(model, adapter)
    tokenizer = load_checkpoint_tokenizer(checkpoint)
    model.img_context_token_id = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
    if device_map is None and quantization_config is None:  # quantised weights are where they were made
        model.to(device)
    return LoadedModel(model.eval(), tokenizer)


def check_complete(checkpoint: Checkpoint, config: InternVLChatConfig) -> None:
    """Refuse weights that do not fit, or lack a tensor, which transformers would fill with random numbers.

    Raises:
        UserError: names the first such tensor.
    """
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in InternVLChatModel(config).state_dict().items()}
    missing = sorted(expected.keys() - checkpoint.tensors.keys())
    if config.llm_config.tie_word_embeddings:
        output = language_model_of(config.llm_config).output
        missing = [name for name in missing if name != f"language_model.{output}"]
    if missing:
        raise UserError(
            f"{checkpoint.folder}: lacks {len(missing)} of the model's {len(expected)} tensors, first {missing[0]}. "
            "Copy the complete checkpoint there."
        )
    for name, shape in expected.items():
        if name in checkpoint.tensors and checkpoint.tensors[name].shape != shape:
            raise UserError(
                f"{checkpoint.folder}: {name} has shape {checkpoint.tensors[name].shape}, and config.json makes it "
                f"{shape}. Put the weights and the config of one checkpoint there."
            )


def check_generation(folder: Path) -> None:
    """Refuse a damaged ``generation_config.json``, which transformers reads along with the weights.

    Raises:
        UserError: it is not JSON, or holds values that cannot be.
    """
    file = folder / "generation_config.json"
    if file.is_file():
        content = read_object(file, "Restore the file, or remove it")
        try:
            GenerationConfig.from_dict(content)
        except Exception as err:  # as for the configuration
            raise UserError(
                f"{file}: is refused by transformers ({one_line(err)}). Restore it, or remove it."
            ) from err


def load_checkpoint_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerFast:
    """Return a checkpoint's tokenizer; an adapter without one uses its base's.

    Raises:
        UserError: there is none, its files are damaged, or it lacks the tokens of images.
    """
    own = checkpoint.folder
    has_own = any((own / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))
    folder = own if has_own or not checkpoint.is_adapter else checkpoint.base().folder
    for name in TOKENIZER_SETTINGS:
        if (folder / name).is_file():
            check_characters(read_object(folder / name, "Copy the file again"), folder / name)
    try:
        tokenizer = load_tokenizer(folder)
        tokenizer(IMG_CONTEXT_TOKEN)  # settings of no use show here only
    except FileNotFoundError as err:
        raise UserError(str(err)) from err
    except Exception as err:  # tokenizers raises bare Exception for a damaged file, transformers whatever it meets
        raise UserError(
            f"{folder}: its tokenizer files are damaged ({one_line(err)}). Copy tokenizer.json or tokenizer.model, "
            "and tokenizer_config.json, again."
        ) from err
    token, index = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if index > MAX_TOKEN_ID:
        raise UserError(f"{folder}: its tokenizer gives {shorten(token)} the id {index:,}. Copy its files again.")
    if tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN) in (None, tokenizer.unk_token_id):
        raise UserError(f"{folder}: its tokenizer does not know {IMG_CONTEXT_TOKEN}. Copy its files again.")
    return tokenizer


def one_line(err: Exception) -> str:
    """Return what an error of a library says, on one line."""
    return " ".join(str(err).split())[:300] or type(err).__name__
