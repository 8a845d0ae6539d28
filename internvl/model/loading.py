"""Load any checkpoint folder: a base, a merged model, an adapter, or a full model with embedded LoRA weights."""

from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerFast
from transformers.utils import is_flash_attn_2_available
from transformers.utils.quantization_config import QuantizationConfigMixin

from internvl.errors import UserError
from internvl.model.adapter import add_adapter
from internvl.model.checkpoint import Checkpoint
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.conversation import IMG_CONTEXT_TOKEN
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.internvl_chat.tokenization_internlm2 import load_tokenizer


class LoadedModel(NamedTuple):
    model: InternVLChatModel
    tokenizer: PreTrainedTokenizerFast


def choose_attention(dtype: torch.dtype, device: str = "cuda") -> str:
    """Return flash_attention_2 where it is installed and can run (a GPU, half precision), else sdpa."""
    usable = device != "cpu" and dtype in (torch.float16, torch.bfloat16) and is_flash_attn_2_available()
    return "flash_attention_2" if usable else "sdpa"


def load_config(checkpoint: Checkpoint) -> InternVLChatConfig:
    """Return the model configuration of a checkpoint; an adapter's is its base's.

    Raises:
        UserError: config.json does not describe an InternVL-Chat model.
    """
    source = checkpoint.base() if checkpoint.is_adapter else checkpoint
    if source.config.get("model_type") != "internvl_chat":
        raise UserError(
            f"{source.folder / 'config.json'}: model_type is {source.config.get('model_type')!r}, not "
            "'internvl_chat'. Name a checkpoint of the published InternVL-Chat layout (not an -hf one)."
        )
    return InternVLChatConfig.from_pretrained(source.folder)


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    attn_implementation: str | None = None,
    device_map: str | None = None,
    config: InternVLChatConfig | None = None,
    quantization_config: QuantizationConfigMixin | None = None,
) -> LoadedModel:
    """Load the model and tokenizer of a checkpoint folder, in eval mode.

    ``device_map="auto"`` spreads the model over all devices (accelerate); otherwise it goes to ``device``. ``config``
    replaces the checkpoint's own; ``quantization_config`` is transformers', for weights held in fewer bits.

    Raises:
        UserError: the folder is missing, incomplete, or does not fit together.
    """
    checkpoint = Checkpoint(path)
    source = checkpoint.base() if checkpoint.is_adapter else checkpoint
    config = config or load_config(checkpoint)
    check_complete(source, config)
    model = InternVLChatModel.from_pretrained(
        source.folder,
        config=config,
        dtype=dtype,
        attn_implementation=attn_implementation or choose_attention(dtype, device),
        device_map=device_map,
        quantization_config=quantization_config,
    )
    if checkpoint.is_adapter:
        add_adapter(model, checkpoint)
    tokenizer = load_checkpoint_tokenizer(checkpoint)
    model.img_context_token_id = tokenizer.convert_tokens_to_ids(IMG_CONTEXT_TOKEN)
    if device_map is None and quantization_config is None:  # quantised weights are where they were made
        model.to(device)
    return LoadedModel(model.eval(), tokenizer)


def check_complete(checkpoint: Checkpoint, config: InternVLChatConfig) -> None:
    """Refuse weights that lack a tensor the model has: transformers would fill it with random numbers and warn.

    Raises:
        UserError: names the first missing tensor.
    """
    with torch.device("meta"):
        expected = InternVLChatModel(config).state_dict().keys()
    missing = sorted(expected - checkpoint.tensors.keys())
    if config.llm_config.tie_word_embeddings:
        missing = [name for name in missing if not name.endswith("language_model.output.weight")]
    if missing:
        raise UserError(
            f"{checkpoint.folder}: lacks {len(missing)} of the model's {len(expected)} tensors, first {missing[0]}. "
            "Copy the complete checkpoint there."
        )


def load_checkpoint_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerFast:
    """Return a checkpoint's tokenizer; an adapter without one uses its base's."""
    own = checkpoint.folder
    has_own = (own / "tokenizer.json").is_file() or (own / "tokenizer.model").is_file()
    try:
        return load_tokenizer(own if has_own or not checkpoint.is_adapter else checkpoint.base().folder)
    except (FileNotFoundError, ValueError) as err:
        raise UserError(str(err)) from err
