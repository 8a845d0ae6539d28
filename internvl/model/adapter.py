"""What trains, and how it is stored: freezing, LoRA, and the adapter folder in PEFT's format."""

import copy
import logging
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from internvl.errors import UserError, shorten
from internvl.model.adapter_names import PEFT_PREFIX
from internvl.model.checkpoint import ADAPTER_WEIGHTS, EMBEDDED_PREFIX, Checkpoint
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.lora_recipe import LoraRecipe

logger = logging.getLogger(__name__)
DEFAULT_RECIPE = LoraRecipe()
MAGNITUDE = "lora_magnitude_vector"


def choose_trainable(
    model: InternVLChatModel,
    *,
    freeze_llm: bool = False,
    freeze_backbone: bool = False,
    freeze_mlp: bool = False,
    use_llm_lora: int = 0,
    use_backbone_lora: int = 0,
    lora: LoraRecipe = DEFAULT_RECIPE,
    unfreeze_vit_layers: int = 0,
    unfreeze_lm_head: bool = False,
) -> InternVLChatModel | PeftModel:
    """Set which parameters train, and return what to train: the model, or PEFT's wrap around the whole of it.

    LoRA layers are put into ``model`` itself. The language model or the vision encoder with LoRA has its own weights
    frozen, as in the original.

    Args:
        model: the base; LoRA of the same rank that the original trainer left inside trains on.
        freeze_llm: freeze the language model.
        freeze_backbone: freeze the vision encoder.
        freeze_mlp: freeze the projector.
        use_llm_lora: rank of LoRA on the language model, 0 for none.
        use_backbone_lora: the same of the vision encoder.
        lora: its other settings.
        unfreeze_vit_layers: -n frees the last n layers of the vision encoder.
        unfreeze_lm_head: free the output layer.

    Raises:
        UserError: nothing would train, or there are not as many layers.
    """
    whole: InternVLChatModel | PeftModel = model
    if use_llm_lora or use_backbone_lora:
        present = _take_out_lora(model)
        model.config.use_llm_lora, model.config.use_backbone_lora = use_llm_lora, use_backbone_lora
        # Which freezes all but LoRA.
        whole = get_peft_model(model, lora.peft_config(model.config, lora.llm_targets(model)))
        whole.load_state_dict(present, strict=False)
    if not use_llm_lora:
        model.language_model.requires_grad_(not freeze_llm)
    if not use_backbone_lora:
        model.vision_model.requires_grad_(not freeze_backbone)
    model.mlp1.requires_grad_(not freeze_mlp)
    if unfreeze_vit_layers:
        layers = model.vision_model.encoder.layers
        if not -len(layers) <= unfreeze_vit_layers < 0:
            raise UserError(
                f"--unfreeze_vit_layers: is {unfreeze_vit_layers}. Give -1 to -{len(layers)}: -N trains the last N "
                "layers."
            )
        layers[unfreeze_vit_layers:].requires_grad_(True)
    if unfreeze_lm_head:
        model.get_output_embeddings().requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            "--freeze_llm, --freeze_backbone, --freeze_mlp: everything is frozen, so nothing would be learnt. "
            "Pass --use_llm_lora 128, or free one of the three."
        )
    return whole


def lora_config_of(model: InternVLChatModel | PeftModel) -> LoraConfig | None:
    """Return PEFT's settings of the LoRA in a model; None where it has none."""
    return getattr(unwrapped(model), "peft_config", {}).get("default")


def _take_out_lora(model: InternVLChatModel) -> dict[str, torch.Tensor]:
    """Take out the LoRA that the original trainer left inside; return it by its names in PEFT's wrap of the whole."""
    present = {}
    for part in ("language_model", "vision_model"):
        wrapped = getattr(model, part)
        if isinstance(wrapped, PeftModel):
            state = {f"{part}.{name}": tensor for name, tensor in wrapped.state_dict().items() if is_lora(name)}
            present |= {PEFT_PREFIX + EMBEDDED_PREFIX.sub(r"\1.", name): tensor for name, tensor in state.items()}
            setattr(model, part, wrapped.unload())
    return present


def unwrapped(model: InternVLChatModel | PeftModel) -> InternVLChatModel:
    """Return the chat model of a model that trains."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def base_name(name: str) -> str:
    """Return the published name of a parameter of a model with LoRA, in PEFT's wrap of the whole or of a part."""
    return EMBEDDED_PREFIX.sub(r"\1.", name.removeprefix(PEFT_PREFIX)).replace(".base_layer.", ".")


def stored_name(name: str) -> str:
    """Return the name PEFT gives a parameter of a model with LoRA in an adapter file."""
    name = PEFT_PREFIX + name.removeprefix(PEFT_PREFIX)
    return name.replace(f"{MAGNITUDE}.default.weight", MAGNITUDE).replace(".default.weight", ".weight")


def embedded_name(name: str, config: InternVLChatConfig) -> str:
    """Return the name that a parameter has in a whole checkpoint with LoRA inside, as the original trainer has it."""
    part, _, rest = name.removeprefix(PEFT_PREFIX).partition(".")
    ranks = {"language_model": config.use_llm_lora, "vision_model": config.use_backbone_lora}
    return f"{part}.base_model.model.{rest}" if ranks.get(part) else f"{part}.{rest}"


def is_lora(name: str) -> bool:
    """Return whether a parameter's name is that of LoRA's or DoRA's."""
    return any(f".{part}." in name for part in ("lora_A", "lora_B", MAGNITUDE))


def _fully_trained_modules(model: nn.Module) -> list[str]:
    """Return the published names of the largest modules without LoRA all of whose weights train.

    A base layer that trains beside its LoRA is not among them: PEFT finds its weights by their names in the file.
    """
    found = []

    def visit(module: nn.Module, name: str) -> None:
        has_lora = any(isinstance(part, LoraLayer) for part in module.modules())
        weights = [] if has_lora else list(module.parameters())
        if weights and all(parameter.requires_grad for parameter in weights):
            found.append(base_name(name))
        elif not isinstance(module, LoraLayer):
            for child_name, child in module.named_children():
                visit(child, f"{name}.{child_name}" if name else child_name)

    visit(model, "")
    return found


def _adapter_state(model: nn.Module, state: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
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
    model: InternVLChatModel | PeftModel,
    folder: str | Path,
    *,
    base: str | Path,
    base_sha256: str,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json``, readable by ``PeftModel.from_pretrained``.

    Modules trained in full are in it, as PEFT's ``modules_to_save``; it would keep a second, frozen copy of each such
    module if they were named while training.

    Args:
        model: with LoRA.
        folder: where to.
        base: the base's folder, recorded.
        base_sha256: the base's hash, recorded: it lets a merge refuse another base.
        state: values of the parameters when they are not in ``model`` itself (gathered from several ranks).
    """
    found = lora_config_of(model)
    assert found is not None, "an adapter is what a model with LoRA is written as"
    config = copy.copy(found)
    config.modules_to_save = _fully_trained_modules(model) or None
    config.base_model_name_or_path = str(base)
    config.auto_mapping = {"base_model_class": InternVLChatModel.__name__, "base_model_sha256": base_sha256}
    config.inference_mode = True
    # PEFT makes a set of them, written in another order every time.
    config.target_modules = sorted(found.target_modules)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_adapter_state(model, state), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(folder)


def continue_adapter(model: InternVLChatModel | PeftModel, start: Checkpoint) -> None:
    """Put an adapter's tensors into a model that is to train it on.

    Raises:
        UserError: the LoRA of the model is another, or a module of the adapter does not train.
    """
    own = lora_config_of(model)
    advice = f"Name the adapter's own settings, or merge it first (python tools/merge_lora.py {start.folder} OUT)."
    if own is None:
        raise UserError(
            f"{start.folder}: is an adapter of rank {start.config.get('r')}, and no LoRA is asked for. {advice}"
        )
    for name in ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "target_modules"):
        theirs, ours = start.config.get(name), getattr(own, name)
        if name == "target_modules" and isinstance(theirs, list):
            theirs, ours = sorted(theirs), sorted(ours)
        if (theirs or None) != (ours or None):
            raise UserError(
                f"{start.folder}: is an adapter with {name} {shorten(theirs, 60)}, and the flags ask for "
                f"{shorten(ours, 60)}. {advice}"
            )
    frozen = {stored_name(name) for name, parameter in model.named_parameters() if not parameter.requires_grad}
    lost = next((name for name in start.tensors if name in frozen), None)
    if lost is not None:
        raise UserError(f"{start.folder}: holds {shorten(lost)}, which the flags freeze. Let it train, or merge it.")
    load_trained(model, start, advice)


def load_trained(
    model: InternVLChatModel | PeftModel,
    saved: Checkpoint,
    anew: str = "Pass --overwrite_output_dir True to start anew.",
) -> None:
    """Put what was saved of a training back into its model: an adapter's tensors, or a whole model's.

    ``anew`` is what to do where that cannot be.

    Raises:
        UserError: a tensor has no place in the model, or another shape there.
    """
    parameters = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if saved.is_adapter:
        names = {stored_name(name): name for name in parameters}
    else:
        names = {embedded_name(name, model.config): name for name in parameters}
    unknown = next((name for name in saved.tensors if name not in names), None)
    if unknown is not None:
        raise UserError(f"{saved.folder}: {shorten(unknown)} has no place in the model that trains. {anew}")
    try:
        tensors = {names[name]: saved.tensor(name) for name in saved.tensors}
        state = {name: _divide_like(parameters[name], tensor) for name, tensor in tensors.items()}
        model.load_state_dict(state, strict=False)
    except RuntimeError as err:
        reason = str(err).splitlines()[-1].strip()
        raise UserError(f"{saved.folder}: does not fit the model that trains ({reason}). {anew}") from err


def _divide_like(parameter: nn.Parameter, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor, which every process has whole, divided over the processes as FSDP divides the parameter."""
    if not isinstance(parameter, DTensor):
        return tensor
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)


def count_elements(parameter: nn.Parameter) -> int:
    """Return a parameter's size; under ZeRO-3 a process holds none of it and the size is recorded beside."""
    return getattr(parameter, "ds_numel", None) or parameter.numel()
