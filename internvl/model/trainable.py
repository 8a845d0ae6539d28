"""What of a model trains and what is frozen, in words."""

from collections.abc import Iterable

from torch import nn

from internvl.model.adapter import count_elements, unwrapped
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel

LORA_MARK = ".lora_"  # in the names of the parameters that PEFT adds


def describe_trainable(model: nn.Module) -> str:
    """Return how many parameters train, and a line for each part of the model.

    Example::

        1,835,008 of 7,677,312 parameters train (23.90 %)
          vision encoder  2,034,816  frozen
          layers          3,015,936  frozen, with 1,835,008 of LoRA on w1 w2 w3 wo wqkv
    """
    parameters = dict(model.named_parameters())
    trained = _count(parameter for parameter in parameters.values() if parameter.requires_grad)
    total = _count(parameters.values())
    lines = [f"{trained:,} of {total:,} parameters train ({100 * trained / total:.2f} %)"]
    parts = [(name, part) for name, part in _parts(unwrapped(model)) if part]  # type: ignore[arg-type]
    own = [(name, {key: one for key, one in part.items() if LORA_MARK not in key}) for name, part in parts]
    width = max(len(name) for name, _ in parts)
    digits = max(len(f"{_count(part.values()):,}") for _, part in own)
    for (name, part), (_, weights) in zip(parts, own, strict=True):
        lines.append(f"  {name:{width}}  {_count(weights.values()):{digits},}  {_state(part, weights)}")
    return "\n".join(lines)


def _parts(model: InternVLChatModel) -> list[tuple[str, dict[str, nn.Parameter]]]:
    """Return the parts of a model with their parameters by name; what the output layer shares is the embeddings'."""
    llm = model.language_model
    embeddings = dict(llm.get_input_embeddings().named_parameters())
    output = dict(llm.get_output_embeddings().named_parameters())
    known = {id(parameter) for parameter in (*embeddings.values(), *output.values())}
    shared = {id(parameter) for parameter in embeddings.values()}
    return [
        ("vision encoder", dict(model.vision_model.named_parameters())),
        ("projector", dict(model.mlp1.named_parameters())),
        ("embeddings", embeddings),
        ("layers", {name: one for name, one in llm.named_parameters() if id(one) not in known}),
        ("output layer", {name: one for name, one in output.items() if id(one) not in shared}),
    ]


def _state(part: dict[str, nn.Parameter], weights: dict[str, nn.Parameter]) -> str:
    """Return whether a part trains, and its LoRA."""
    trained = [parameter for parameter in weights.values() if parameter.requires_grad]
    state = "trains" if len(trained) == len(weights) else "frozen"
    if trained and len(trained) < len(weights):
        state = f"{_count(trained):,} train"
    lora = {name: parameter for name, parameter in part.items() if LORA_MARK in name}
    if lora:
        layers = sorted({name.partition(LORA_MARK)[0].rpartition(".")[2] for name in lora})
        state += f", with {_count(lora.values()):,} of LoRA on {' '.join(layers)}"
    return state


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(map(count_elements, parameters))
