"""What trains, and how it is stored: freezing, LoRA, and the adapter folder in PEFT's format."""

import logging
from pathlib import Path

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from internvl.errors import UserError, shorten
from internvl.model.adapter_names import PEFT_PREFIX
from internvl.model.checkpoint import ADAPTER_WEIGHTS, EMBEDDED_PREFIX
from internvl.model.internvl_chat.modeling_internvl_chat import (
    BACKBONE_LORA_TARGETS,
    LLM_LORA_TARGETS,
    InternVLChatModel,
)

logger = logging.getLogger(__name__)


def choose_trainable(
    model: InternVLChatModel,
    *,
    freeze_llm: bool = False,
    freeze_backbone: bool = False,
    freeze_mlp: bool = False,
    use_llm_lora: int = 0,
    use_backbone_lora: int = 0,
    lora_dropout: float = 0.05,
    unfreeze_vit_layers: int = 0,
    unfreeze_lm_head: bool = False,
) -> None:
    """Set which parameters train; LoRA (rank above 0, alpha twice the rank) is added and always trains.

    LoRA of the same rank that is in the model already trains on. A half of the model with LoRA has its own weights
    frozen, as in the original. ``unfreeze_vit_layers`` -n frees the last n encoder layers; ``unfreeze_lm_head`` the
    output layer.
    """
    model.vision_model.requires_grad_(not freeze_backbone)
    model.language_model.requires_grad_(not freeze_llm)
    model.mlp1.requires_grad_(not freeze_mlp)
    if use_backbone_lora and model.config.use_backbone_lora:
        train_present_lora(model.vision_model, lora_dropout)
    elif use_backbone_lora:
        model.wrap_backbone_lora(use_backbone_lora, 2 * use_backbone_lora, lora_dropout)
        model.config.use_backbone_lora = use_backbone_lora
    if use_llm_lora and model.config.use_llm_lora:
        train_present_lora(model.language_model, lora_dropout)
    elif use_llm_lora:
        model.wrap_llm_lora(use_llm_lora, 2 * use_llm_lora, lora_dropout)
        model.config.use_llm_lora = use_llm_lora
    if unfreeze_vit_layers:
        layers = model.vision_model.encoder.layers
        if not -len(layers) <= unfreeze_vit_layers < 0:
            raise UserError(
                f"--unfreeze_vit_layers: is {unfreeze_vit_layers}. Give -1 to -{len(layers)}, so many last layers."
            )
        layers[unfreeze_vit_layers:].requires_grad_(True)
    if unfreeze_lm_head:
        model.get_output_embeddings().requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            "--freeze_llm, --freeze_backbone, --freeze_mlp: everything is frozen, so nothing would be learnt. "
            "Pass --use_llm_lora 128, or free one of the three."
        )


def train_present_lora(part: nn.Module, lora_dropout: float) -> None:
    """Make the LoRA weights that a half of the model came with its only trained ones, with this dropout."""
    for name, parameter in part.named_parameters():
        parameter.requires_grad_(is_lora(name))
    for module in part.modules():
        if isinstance(module, LoraLayer):
            for adapter in module.lora_dropout:
                module.lora_dropout[adapter] = nn.Dropout(lora_dropout) if lora_dropout else nn.Identity()


def base_name(name: str) -> str:
    """Return the published name of a parameter of a model with LoRA inside."""
    return EMBEDDED_PREFIX.sub(r"\1.", name).replace(".base_layer.", ".")


def stored_name(name: str) -> str:
    """Return the name PEFT gives a parameter of a model with LoRA inside in an adapter file."""
    return PEFT_PREFIX + base_name(name).replace(".default.weight", ".weight")


def is_lora(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def fully_trained_modules(model: nn.Module) -> list[str]:
    """Return the published names of the largest modules all of whose own weights train."""
    found = []

    def visit(module: nn.Module, name: str) -> None:
        weights = [p for n, p in module.named_parameters() if not is_lora(f"{name}.{n}")]
        if weights and all(parameter.requires_grad for parameter in weights):
            found.append(base_name(name))
            return
        for child_name, child in module.named_children():
            visit(child, f"{name}.{child_name}" if name else child_name)

    visit(model, "")
    return found


def adapter_state(model: nn.Module, state: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Return the trained tensors under the names PEFT gives them in an adapter file.

    ``state`` holds the values when they are not in ``model`` itself (gathered from several processes).
    """
    state = state if state is not None else dict(model.named_parameters())
    trained = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trained[stored_name(name)] = state[name].detach().cpu().contiguous()
    return trained


def save_adapter(
    model: InternVLChatModel,
    folder: str | Path,
    *,
    base: str | Path,
    base_sha256: str,
    lora_dropout: float,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json``, readable by ``PeftModel.from_pretrained``.

    Modules trained in full are in it, as PEFT's ``modules_to_save``. ``base`` and its hash are recorded.
    """
    ranks = {"llm": model.config.use_llm_lora, "backbone": model.config.use_backbone_lora}
    targets = {"llm": LLM_LORA_TARGETS, "backbone": BACKBONE_LORA_TARGETS}
    used = [part for part in ranks if ranks[part]]
    first = ranks[used[0]]
    pattern = {target: ranks[part] for part in used for target in targets[part] if ranks[part] != first}
    config = LoraConfig(
        r=first,
        lora_alpha=2 * first,
        lora_dropout=lora_dropout,
        target_modules=[target for part in used for target in targets[part]],
        rank_pattern=pattern,
        alpha_pattern={target: 2 * rank for target, rank in pattern.items()},
        modules_to_save=fully_trained_modules(model) or None,
        base_model_name_or_path=str(base),
        # PEFT keeps this dictionary as it is; the hash lets a merge refuse another base.
        auto_mapping={"base_model_class": InternVLChatModel.__name__, "base_model_sha256": base_sha256},
        inference_mode=True,
    )
    config.target_modules = sorted(
        config.target_modules
    )  # PEFT makes a set of it, written in another order every time
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(adapter_state(model, state), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(folder)


def load_adapter_tensors(model: nn.Module, tensors: dict[str, torch.Tensor], folder: str | Path) -> None:
    """Put the tensors of an adapter file into a model that has its LoRA layers already; ``folder`` is for messages.

    Raises:
        UserError: a tensor has no place in the model, or another shape there.
    """
    parameters = dict(model.named_parameters())
    names = {stored_name(name): name for name in parameters}
    unknown = next((name for name in tensors if name not in names), None)
    if unknown is not None:
        raise UserError(
            f"{folder}: {shorten(unknown)} has no place in the base model. Use the base it was trained on."
        )
    try:
        state = {names[name]: divide_like(parameters[names[name]], tensor) for name, tensor in tensors.items()}
        model.load_state_dict(state, strict=False)
    except RuntimeError as err:
        reason = str(err).splitlines()[-1].strip()
        raise UserError(f"{folder}: does not fit its base model ({reason}). Use the base it was trained on.") from err


def divide_like(parameter: nn.Parameter, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor, which every process has whole, divided over the processes as FSDP divides the parameter."""
    if not isinstance(parameter, DTensor):
        return tensor
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)


def describe_trainable(model: nn.Module) -> str:
    """Return one line for the log, like ``1,105,920 of 6,321,408 parameters train (17.50 %)``."""
    total = sum(count_elements(parameter) for parameter in model.parameters())
    trained = sum(count_elements(parameter) for parameter in model.parameters() if parameter.requires_grad)
    return f"{trained:,} of {total:,} parameters train ({100 * trained / total:.2f} %)"


def count_elements(parameter: nn.Parameter) -> int:
    """Return a parameter's size; under ZeRO-3 a process holds none of it and the size is recorded beside."""
    return getattr(parameter, "ds_numel", None) or parameter.numel()
