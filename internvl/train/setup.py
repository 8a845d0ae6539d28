"""The model a finetune starts from: loaded, checked against the flags, and with its trainable parts chosen."""

import copy
import logging
import re
from dataclasses import fields

import torch
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

from internvl.data.tokenize import RenderSettings
from internvl.errors import UserError
from internvl.model.adapter import choose_trainable, continue_adapter
from internvl.model.checkpoint import Checkpoint
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.conversation import get_conv_template
from internvl.model.internvl_chat.language_models import language_model_of
from internvl.model.loading import LoadedModel, load_config, load_model, source_of
from internvl.model.lora_recipe import LoraRecipe
from internvl.train.arguments import PUBLISHED_IMAGE_SIZE, DataArguments, FinetuneArguments, ModelArguments
from internvl.train.sharding import zero3_init_disabled

logger = logging.getLogger(__name__)


def load_for_training(
    model_args: ModelArguments, data_args: DataArguments, training_args: FinetuneArguments
) -> LoadedModel:
    """Load the checkpoint and prepare what trains.

    Frozen weights are held in the training precision, trained ones in float32 (DeepSpeed keeps its own float32 copy
    and gets all in the training precision). With LoRA the model is PEFT's wrap around the whole of it. An adapter
    trains on, on its base.

    Raises:
        UserError: the checkpoint is unfit, or a flag contradicts its config.
    """
    start = Checkpoint(model_args.model_name_or_path)
    checkpoint = source_of(start)
    config = load_config(checkpoint)
    check_against_config(model_args, data_args, config)
    config.vision_config.drop_path_rate = model_args.drop_path_rate
    dtype = training_dtype(training_args)
    _check_embedded_lora(model_args, config)
    with zero3_init_disabled(training_args):
        loaded = load_model(
            checkpoint.folder,
            config=config,
            dtype=dtype,
            device="cpu",  # the trainer moves it
            attn_implementation=model_args.attn_implementation,
            quantization_config=_four_bit_config(dtype, config) if model_args.load_in_4bit else None,
        )
    model = loaded.model
    _resize_tiles(model, _choose_image_size(data_args, config))
    config = model.config  # transformers made a copy
    config.dynamic_image_size = data_args.dynamic_image_size
    config.use_thumbnail = data_args.use_thumbnail
    config.min_dynamic_patch = data_args.min_dynamic_patch
    config.max_dynamic_patch = data_args.max_dynamic_patch
    trained = choose_trainable(
        model,
        freeze_llm=model_args.freeze_llm,
        freeze_backbone=model_args.freeze_backbone,
        freeze_mlp=model_args.freeze_mlp,
        use_llm_lora=model_args.use_llm_lora,
        use_backbone_lora=model_args.use_backbone_lora,
        lora=lora_recipe(model_args),
        unfreeze_vit_layers=model_args.unfreeze_vit_layers,
        unfreeze_lm_head=model_args.unfreeze_lm_head,
    )
    if start.is_adapter:
        continue_adapter(trained, start)
    if not training_args.deepspeed:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return loaded._replace(model=trained)


def lora_recipe(model_args: ModelArguments) -> LoraRecipe:
    """Return the settings of LoRA that the flags name."""
    return LoraRecipe(
        dropout=model_args.lora_dropout,
        alpha=model_args.lora_alpha,
        use_rslora=model_args.use_rslora,
        use_dora=model_args.use_dora,
        targets=tuple(re.split(r"[\s,]+", model_args.lora_target_modules.strip(" ,")))
        if model_args.lora_target_modules
        else None,
    )


def _four_bit_config(dtype: torch.dtype, config: InternVLChatConfig) -> BitsAndBytesConfig:
    """Return how the language model's layers are held in 4 bits (NF4 with double quantisation, arXiv:2305.14314).

    bitsandbytes has kernels for a CPU, too, which are slow.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if not is_bitsandbytes_available():
        raise UserError("--load_in_4bit: needs the package bitsandbytes. Run: pip install bitsandbytes.")
    output = language_model_of(config.llm_config).output.removesuffix(".weight")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["vision_model", "mlp1", output],
    )


def _check_embedded_lora(model_args: ModelArguments, config: InternVLChatConfig) -> None:
    """Refuse other ranks than the LoRA weights have that the original trainer left in a checkpoint.

    Raises:
        UserError: names the flag, both ranks and the two ways on.
    """
    folder = model_args.model_name_or_path
    for flag, present in (
        ("use_llm_lora", config.use_llm_lora),
        ("use_backbone_lora", config.use_backbone_lora),
    ):
        given = getattr(model_args, flag)
        if present and given != present:
            raise UserError(
                f"--{flag}: is {given}, but {folder} has LoRA weights of rank {present} inside. Pass --{flag} "
                f"{present} to train them on, or merge them first (python tools/merge_lora.py {folder} OUT) and start "
                "from the result."
            )
        if present and not lora_recipe(model_args).fits_whole_checkpoints:
            raise UserError(
                f"{folder}: has LoRA weights inside, which were trained with alpha of twice the rank on all layers. "
                "Remove --lora_alpha, --use_rslora, --use_dora and --lora_target_modules, or merge them first (python "
                f"tools/merge_lora.py {folder} OUT) and start from the result."
            )


def training_dtype(training_args: FinetuneArguments) -> torch.dtype:
    """Return the dtype that --bf16 / --fp16 ask for."""
    if training_args.bf16:
        return torch.bfloat16
    return torch.float16 if training_args.fp16 else torch.float32


def _choose_image_size(data_args: DataArguments, config: InternVLChatConfig) -> int:
    """Return the tile side in px: the flag's, or for ``auto`` 448 or the checkpoint's own when that is smaller."""
    if data_args.force_image_size == "auto":
        return min(PUBLISHED_IMAGE_SIZE, config.image_size)
    size, multiple = int(data_args.force_image_size), config.vision_config.patch_size
    # After the pixel unshuffle the grid of patches must still be whole.
    multiple = round(multiple / config.downsample_ratio)
    if size % multiple or size == 0:
        raise UserError(
            f"--force_image_size: is {size}, not a multiple of {multiple} px (patches of "
            f"{config.vision_config.patch_size} px, folded two by two). Use {max(1, size // multiple) * multiple}."
        )
    return size


def render_settings(data_args: DataArguments, config: InternVLChatConfig) -> RenderSettings:
    """Return how rows become samples, from the flags and a checkpoint's config."""
    named = {field.name for field in fields(RenderSettings)} & {field.name for field in fields(DataArguments)}
    image_size = _choose_image_size(data_args, config)
    sized = copy.deepcopy(config)
    sized.force_image_size = image_size
    return RenderSettings(
        template=get_conv_template(config.template),
        image_size=image_size,
        num_image_token=sized.num_image_token,
        pad2square=config.pad2square,
        **{name: getattr(data_args, name) for name in named},
    )


def _resize_tiles(model, image_size: int) -> None:
    """Make the model take tiles of ``image_size`` px, resizing its position embeddings when they are for another."""
    config = model.config
    if config.vision_config.image_size != image_size:
        logger.warning(
            "Resizing the vision position embeddings from %d px to %d px.",
            config.vision_config.image_size,
            image_size,
        )
        model.vision_model.resize_pos_embeddings(image_size)
    config.force_image_size = image_size
    model.num_image_token = config.num_image_token


def check_against_config(model_args: ModelArguments, data_args: DataArguments, config: InternVLChatConfig) -> None:
    """Refuse flags that name another architecture than the checkpoint has: training on would ruin the projector.

    Raises:
        UserError: names the flag, both values and what to pass.
    """
    pairs = (
        ("ps_version", model_args.ps_version, config.ps_version),
        ("vision_select_layer", model_args.vision_select_layer, config.select_layer),
        ("down_sample_ratio", data_args.down_sample_ratio, config.downsample_ratio),
        ("conv_style", data_args.conv_style, config.template),
    )
    for name, given, own in pairs:
        if given is not None and own is not None and given != own:
            raise UserError(
                f"--{name}: is {given!r}, but {model_args.model_name_or_path} was trained with {own!r}. "
                f"Pass --{name} {own}."
            )
