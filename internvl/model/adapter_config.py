"""What an ``adapter_config.json`` may say: every key of PEFT's LoRA is supported, without effect, or refused by name.

PEFT adds a key for each variant of LoRA, and a variant that is not noticed is read as plain LoRA: wrong weights, and
nothing says so. So a key that is not known here must have a value that means "off".
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from internvl.errors import UserError, shorten
from internvl.limits import MAX_ALPHA, MAX_RANK
from internvl.model.checkpoint import ADAPTER_CONFIG, Checkpoint

ALL_LINEAR = "all-linear"
# Values of a key that say "not used".
OFF = (None, False, "", [], {})
# Keys that decide how the tensors of the file enter the weights, or which layers have some.
READ = {
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias",
    "init_lora_weights", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "modules_to_save", "bias",
}  # fmt: skip
# Keys that say where the adapter comes from and how it was trained: once it is, they change no number. The *_config
# of a start count with the init_lora_weights that uses them, and fan_in_fan_out PEFT itself resets for these layers.
WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "revision", "task_type", "peft_version", "inference_mode",
    "lora_dropout", "fan_in_fan_out", "runtime_config", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "megatron_core", "qalora_group_size", "ensure_weight_tying",
}  # fmt: skip
MERGE_WITH_PEFT = (
    "Merge it with PEFT (PeftModel.from_pretrained(model, FOLDER).merge_and_unload(), then save_pretrained of model "
    "and tokenizer) and use that whole model"
)
# Variants of LoRA that are not read, and why.
REFUSED = {
    "alora_invocation_tokens": "aLoRA acts only after these tokens, which no merged weight can do. Use it with PEFT",
    "use_qalora": "QA-LoRA belongs to weights quantised in groups. Use it with PEFT and that quantised base",
    "layer_replication": (
        "The adapter is for a deeper model, whose layers are copies of the base's. Write that model out, and train on "
        "it without layer_replication"
    ),
    "megatron_config": "The adapter is for Megatron's parallel layers. Convert it with Megatron to a plain PEFT one",
    "target_parameters": f"LoRA on parameters instead of layers is not read. {MERGE_WITH_PEFT}",
    "trainable_token_indices": f"Tokens trained one by one are not read. {MERGE_WITH_PEFT}",
    "arrow_config": "Arrow chooses between several adapters for every token. Use it with PEFT",
    "use_bdlora": f"BD-LoRA's matrices are block-diagonal. {MERGE_WITH_PEFT}",
    "velora_config": f"VeLoRA is not read. {MERGE_WITH_PEFT}",
    "monteclora_config": f"MonteCLoRA is not read. {MERGE_WITH_PEFT}",
    "kasa_config": f"KaSA changes the base's weights. {MERGE_WITH_PEFT}",
}
# Starts of LoRA that leave the base as it is: the adapter is what is added to it.
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva", "mica")
# Starts that take the first A and B out of the base's weights: the adapter belongs to what is left, not to the base.
CHANGING_STARTS = {"pissa": "PiSSA", "olora": "OLoRA", "corda": "CorDA", "lora_ga": "LoRA-GA"}


@dataclass(frozen=True)
class LoraSettings:
    """How an adapter's tensors enter the weights: rank and scaling of each layer by PEFT's own rule.

    Layers go by the names the adapter has for them (``language_model.model.layers.0.attention.wqkv``, or
    ``model.layers.0.attention.wqkv`` where the language model was trained alone).
    """

    file: Path
    r: int
    lora_alpha: float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    use_rslora: bool
    use_dora: bool
    lora_bias: bool
    modules_to_save: tuple[str, ...]
    selection: SimpleNamespace  # what PEFT's check_target_module_exists looks at

    def rank(self, layer: str) -> int:
        return self.rank_pattern.get(get_pattern_key(self.rank_pattern, layer), self.r)

    def scaling(self, layer: str) -> float:
        """Return what B A is multiplied by: alpha / rank, or alpha / √rank with ``use_rslora``."""
        alpha = self.alpha_pattern.get(get_pattern_key(self.alpha_pattern, layer), self.lora_alpha)
        rank = self.rank(layer)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def alphas(self, layer: str) -> list[float]:
        """Return the different values of all patterns in ``alpha_pattern`` that fit a layer; the first one counts."""
        fitting = (pattern for pattern in self.alpha_pattern if get_pattern_key([pattern], layer) == pattern)
        return list(dict.fromkeys(self.alpha_pattern[pattern] for pattern in fitting))

    def source_of_rank(self, layer: str) -> str:
        """Return where the config says the rank of a layer, for messages: ``adapter_config.json:r``."""
        key = get_pattern_key(self.rank_pattern, layer)
        return f"{self.file}:rank_pattern.{key}" if key in self.rank_pattern else f"{self.file}:r"

    def selects(self, layer: str) -> bool:
        """Return whether ``target_modules`` and the keys beside it give this layer LoRA."""
        if str(self.selection.target_modules).lower() == ALL_LINEAR:
            return True
        return bool(check_target_module_exists(self.selection, layer))


def read_settings(adapter: Checkpoint) -> LoraSettings:
    """Return the settings of an adapter folder.

    Raises:
        UserError: not LoRA, a variant that is not read, an unknown key that is switched on, or a value that cannot
            be.
    """
    config, file = adapter.config, adapter.folder / ADAPTER_CONFIG
    _check_type(config, file)
    _check_variants(config, file)
    _check_start(config.get("init_lora_weights", True), file)
    flags = {name: _read_flag(config, name, file) for name in ("use_rslora", "use_dora", "lora_bias")}
    if flags["use_dora"] and flags["lora_bias"]:
        raise UserError(f"{file}:lora_bias: is true beside use_dora, which PEFT has no layer for. Set one to false.")
    return LoraSettings(
        file=file,
        r=_check_rank(config.get("r"), f"{file}:r"),
        lora_alpha=_check_alpha(config.get("lora_alpha"), f"{file}:lora_alpha"),
        rank_pattern=_read_pattern(config, "rank_pattern", _check_rank, file),
        alpha_pattern=_read_pattern(config, "alpha_pattern", _check_alpha, file),
        modules_to_save=tuple(_read_names(config, "modules_to_save", file)),
        selection=_read_selection(config, file),
        **flags,
    )


def _check_type(config: dict, file: Path) -> None:
    """Refuse every kind of adapter but LoRA.

    Raises:
        UserError: names the kind.
    """
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind.upper() != "LORA":
        raise UserError(f"{file}:peft_type: is {shorten(kind)}, and only LORA is read. {MERGE_WITH_PEFT}.")


def _check_variants(config: dict, file: Path) -> None:
    """Refuse variants of LoRA that are not read, and unknown keys that are switched on.

    Raises:
        UserError: names the key and its value.
    """
    for key, value in config.items():
        if key in READ or key in WITHOUT_EFFECT or any(value is off or value == off for off in OFF):
            continue
        if key in REFUSED:
            raise UserError(f"{file}:{key}: is {shorten(value)}. {REFUSED[key]}.")
        version = config.get("peft_version")
        by = f", which PEFT {shorten(version)} wrote," if version else ""
        raise UserError(
            f"{file}:{shorten(key)}: is {shorten(value)}, and this key{by} is not known here, so neither is what it "
            f"changes. {MERGE_WITH_PEFT}."
        )


def _check_start(start: object, file: Path) -> None:
    """Refuse a start of LoRA that has changed the base's weights, and one that is not known.

    Raises:
        UserError: names it, with the way to plain LoRA where PEFT has one.
    """
    where = f"{file}:init_lora_weights: is {shorten(start)}"
    name = start.lower() if isinstance(start, str) else start
    if any(name is plain or (isinstance(name, str) and name == plain) for plain in PLAIN_STARTS):
        return
    kind = next((kind for kind in CHANGING_STARTS if isinstance(name, str) and name.startswith(kind)), None)
    if kind:
        # PEFT repeats these two when it loads the adapter; the others depend on chance or on data.
        way = (
            f"{MERGE_WITH_PEFT}: PEFT takes the same out of the base first"
            if name in ("pissa", "olora")
            else (
                "Where it was trained, save it as plain LoRA: model.save_pretrained(OUT, "
                "path_initial_model_for_weight_conversion=INITIAL), with the adapter as it was before the first step, "
                "saved with init_lora_weights true, as INITIAL"
            )
        )
        raise UserError(
            f"{where}, and {CHANGING_STARTS[kind]} takes the start of the adapter out of the base's weights, so the "
            f"adapter does not fit the base as it was published. {way}."
        )
    if name == "loftq":
        raise UserError(
            f"{where}, and LoftQ quantises the base's weights when the training begins, so the adapter does not fit "
            "the base as it was published. Where it was trained, merge it with PEFT (model.merge_and_unload(), then "
            "save_pretrained) and use that whole model."
        )
    raise UserError(f"{where}, a start that is not known here. {MERGE_WITH_PEFT}.")


def _read_flag(config: dict, key: str, file: Path) -> bool:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{file}:{key}: is {shorten(value)}. Give true or false, as it was trained.")
    return bool(value)


def _check_rank(value: object, where: str) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise UserError(f"{where}: is {shorten(value)}. Give the rank it was trained with, from 1 to {MAX_RANK}.")
    return value


def _check_alpha(value: object, where: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= MAX_ALPHA:
        raise UserError(f"{where}: is {shorten(value)}. Give the number it was trained with, above 0.")
    return value


def _read_pattern(config: dict, key: str, check, file: Path) -> dict:
    """Return ``rank_pattern`` or ``alpha_pattern``: name, end of a name or regular expression → value."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise UserError(f"{file}:{key}: is {shorten(patterns)}. Give an object of layer → number.")
    for pattern, value in patterns.items():
        _check_expression(pattern, f"{file}:{key}")
        check(value, f"{file}:{key}.{pattern}")
    return patterns


def _check_expression(pattern: str, where: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as err:
        raise UserError(
            f"{where}: {shorten(pattern)} is not a regular expression ({err}). Correct it, or write the layer's name."
        ) from err


def _read_names(config: dict, key: str, file: Path) -> list[str]:
    value = config.get(key) or []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{file}:{key}: is {shorten(value)}. Give a list of names.")
    return value


def _read_selection(config: dict, file: Path) -> SimpleNamespace:
    """Return the keys by which PEFT chooses the layers with LoRA."""
    found: dict[str, str | list[str]] = {}
    for key in ("target_modules", "exclude_modules"):
        value = config.get(key)
        if isinstance(value, str):
            _check_expression(value, f"{file}:{key}")
            found[key] = value
        else:
            found[key] = _read_names(config, key, file)
    if config.get("target_modules") is None:
        raise UserError(
            f"{file}:target_modules: is missing, so it is unknown which layers have LoRA. Give the list it was "
            "trained with."
        )
    layers, pattern = config.get("layers_to_transform"), config.get("layers_pattern")
    numbers = layers if isinstance(layers, list) else [] if layers is None else [layers]
    if not all(type(number) is int for number in numbers):
        raise UserError(f"{file}:layers_to_transform: is {shorten(layers)}. Give a number, or a list of numbers.")
    names = pattern if isinstance(pattern, list) else [] if pattern is None else [pattern]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{file}:layers_pattern: is {shorten(pattern)}. Give a name, or a list of names.")
    for name in names:
        _check_expression(name, f"{file}:layers_pattern")
    return SimpleNamespace(
        **found, layers_to_transform=numbers or None, layers_pattern=names or None, target_parameters=None
    )
