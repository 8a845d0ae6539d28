"""The published layout at full size, on the meta device: names, order, shapes, and what trains with LoRA."""

import re
from pathlib import Path

import torch

from internvl.model.adapter import choose_trainable, embedded_name
from internvl.model.internvl_chat import InternVLChatConfig, InternVLChatModel
from tests.reference.golden import read_json
from tests.reference.runner import Report


def run(report: Report, folder: Path) -> None:
    """Check ``keys_<model>.json``, ``keys_<model>_<part>_lora.json`` and ``trainable_<model>_<setup>.json``."""
    contents = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    bases = {name: content for name, content in contents.items() if "config_to_dict" in content}
    for base, content in bases.items():
        with report.guard(base):
            model = build(content["config_to_dict"])
            check_layout(report, base, model, content)
            report.equal(f"{base}/num_image_token", model.num_image_token, content["num_image_token"])
            for part, numel in content["numel_by_part"].items():
                report.equal(f"{base}/numel of {part}", count(model.get_submodule(part)), numel)
        for name, golden in contents.items():
            setup = name.split("_", 1)[-1]
            if name == base or not setup.startswith(base.split("_", 1)[-1] + "_"):
                continue
            with report.guard(name):
                model = build(content["config_to_dict"])
                if name.startswith("keys"):
                    check_lora_layout(report, name, model, golden)
                elif name.startswith("trainable"):
                    check_trainable(report, name, model, golden)


def build(config: dict) -> InternVLChatModel:
    with torch.device("meta"):
        return InternVLChatModel(InternVLChatConfig(**config))


def count(module: torch.nn.Module, *, trainable_only: bool = False) -> int:
    parameters = module.parameters()
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad or not trainable_only)


def check_layout(report: Report, name: str, model: InternVLChatModel, golden: dict) -> None:
    """Compare parameters with their shapes and dtypes, the order of the state dict, and the counts."""
    parameters = [[key, list(value.shape), str(value.dtype)] for key, value in model.named_parameters()]
    wanted = [[key, shape, dtype] for key, (shape, dtype, *_) in golden["parameters"].items()]
    report.equal(f"{name}/parameters", parameters, wanted)
    report.equal(f"{name}/state_dict_keys", list(model.state_dict()), golden["state_dict_keys"])
    report.equal(f"{name}/n_parameters", len(parameters), golden["n_parameters"])
    report.equal(f"{name}/numel", count(model), golden["numel"])


def check_lora_layout(report: Report, name: str, model: InternVLChatModel, golden: dict) -> None:
    """Wrap the part that the file's name tells, and compare the layout and what trains."""
    lora = golden["lora"]
    wrap = model.wrap_llm_lora if "_llm_" in name else model.wrap_backbone_lora
    with torch.device("meta"):
        wrap(r=lora["r"], lora_alpha=lora["lora_alpha"], lora_dropout=lora["lora_dropout"])
    check_layout(report, name, model, golden)
    part = model.language_model if "_llm_" in name else model.vision_model
    peft = part.peft_config["default"]
    settings = {key: getattr(peft, key) for key in lora}
    settings["target_modules"] = sorted(settings["target_modules"])
    settings["task_type"] = str(settings["task_type"]).removeprefix("TaskType.")
    report.equal(f"{name}/lora", settings, lora | {"target_modules": sorted(lora["target_modules"])})
    if wrapped := golden.get("trainable_if_only_wrapped"):
        trained = [key for key, value in model.named_parameters() if value.requires_grad]
        report.equal(f"{name}/number that trains", len(trained), wrapped["count"])
        report.equal(f"{name}/numel that trains", count(model, trainable_only=True), wrapped["numel"])


def check_trainable(report: Report, name: str, model: InternVLChatModel, golden: dict) -> None:
    """Apply the setup, written like ``freeze_llm, use_llm_lora=128 (…)``, and compare what trains."""
    setup = re.sub(r"\(.*?\)", "", golden["setup"])
    options = dict.fromkeys(re.findall(r"freeze_\w+", setup), True)
    options |= {option: int(rank) for option, rank in re.findall(r"(use_\w+_lora)\s*=\s*(\d+)", setup)}
    with torch.device("meta"):
        choose_trainable(model, **options)
    # The original wrapped each half of the model, which the names of its whole checkpoints show.
    trained = [embedded_name(key, model.config) for key, value in model.named_parameters() if value.requires_grad]
    report.equal(f"{name}/trainable", trained, golden["trainable"])
    report.equal(f"{name}/n_trainable", len(trained), golden["n_trainable"])
    report.equal(f"{name}/numel_trainable", count(model, trainable_only=True), golden["numel_trainable"])
    report.equal(f"{name}/numel_total", count(model), golden["numel_total"])
