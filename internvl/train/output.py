"""The output folder of a finetune: what is in it, and how each file is written."""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerFast

from internvl.json_files import write_json
from internvl.model.adapter import base_name, embedded_name, save_adapter, unwrapped
from internvl.model.checkpoint import Checkpoint
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel
from internvl.model.packaging import (
    read_generation,
    write_chat_tokenizer,
    write_generation,
    write_model_files,
    write_processor_files,
)
from internvl.model.safetensors_stream import DTYPE_OF_SPELLING
from internvl.model.tiling import FIELDS as TILING_FIELDS


class OutputFolder:
    """Writes checkpoints and the result of one training.

    With LoRA the model is written as an adapter that names its base and the base's hash; without, or when
    ``save_full_model`` asks for it, as a whole model that loads with ``AutoModel``.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        base: Checkpoint,
        tokenizer: PreTrainedTokenizerFast,
        save_full_model: bool,
    ):
        self.folder = Path(folder)
        self.base = base
        self.tokenizer = tokenizer
        self.save_full_model = save_full_model
        self._base_sha256: str | None = None

    def save_model(
        self, model: InternVLChatModel | PeftModel, folder: str | Path | None = None, state: dict | None = None
    ) -> None:
        """Write the trained model, its tokenizer and config; ``state`` as in ``save_adapter``."""
        folder = Path(folder or self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.writes_adapter(model):
            if self._base_sha256 is None:
                self._base_sha256 = self.base.sha256()
            save_adapter(
                model,
                folder,
                base=self.base.folder,
                base_sha256=self._base_sha256,
                state=state,
            )
            # The base's config, which describes no LoRA, with the tiles of this training.
            tiling = {own: getattr(model.config, own) for own in TILING_FIELDS.values()}
            write_json(folder / "config.json", {**self.base.config, **tiling})
            write_processor_files(folder, model.config)
        else:
            state = state if state is not None else model.state_dict()
            # LoRA inside a whole model has the names that the original trainer gave it.
            state = {embedded_name(name, model.config): tensor for name, tensor in state.items()}
            state = {name: self.as_stored(name, tensor) for name, tensor in state.items()}
            model = unwrapped(model)
            for config in (model.config, model.config.vision_config, model.config.llm_config):
                config.dtype = state["mlp1.1.weight"].dtype
            model.save_pretrained(folder, state_dict=state)
            write_model_files(folder, model.config)
        write_generation(folder, read_generation(self.base.folder), self.tokenizer, model.config.template)
        write_chat_tokenizer(folder, self.tokenizer, model.config.template)

    def writes_adapter(self, model: InternVLChatModel | PeftModel) -> bool:
        """Return whether a model is written as an adapter."""
        return bool(model.config.use_llm_lora or model.config.use_backbone_lora) and not self.save_full_model

    def as_stored(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a trained tensor in the dtype the base has it in: float32 training does not double a checkpoint."""
        stored = self.base.tensors.get(base_name(name))
        return tensor.to(DTYPE_OF_SPELLING[stored.dtype]) if stored is not None else tensor

    def draw_loss(self, folder: Path, log_history: list[dict]) -> None:
        """Draw loss.png: loss of each logged step, running mean, loss of held-out rows, and learning rate."""
        import matplotlib  # here, because only one process draws, once

        matplotlib.use("agg")
        from matplotlib import pyplot

        logged = [entry for entry in log_history if "loss" in entry]
        if not logged:
            return
        steps = [entry["step"] for entry in logged]
        losses = [entry["loss"] for entry in logged]
        figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
        axes.plot(steps, losses, color="tab:blue", alpha=0.3, label="loss of the step")
        axes.plot(steps, _running_mean(losses), color="tab:blue", label="running mean")
        evaluated = [entry for entry in log_history if "eval_loss" in entry]
        if evaluated:
            held_out = [entry["eval_loss"] for entry in evaluated]
            axes.plot([entry["step"] for entry in evaluated], held_out, "o-", color="tab:red", label="held-out rows")
        axes.set(xlabel="optimizer step", ylabel="loss (nats per supervised token)", title=self.folder.name)
        axes.grid(alpha=0.3)
        rates = axes.twinx()
        rates.plot(steps, [entry["learning_rate"] for entry in logged], color="tab:orange", alpha=0.6)
        rates.set_ylabel("learning rate", color="tab:orange")
        rates.ticklabel_format(style="sci", axis="y", scilimits=(0, 0))
        axes.legend()
        figure.savefig(folder / "loss.png", dpi=120)
        pyplot.close(figure)


def _running_mean(values: list[float], weight: float = 0.9) -> list[float]:
    """Return the exponential running mean, unbiased from the first value on."""
    means, total, norm = [], 0.0, 0.0
    for value in values:
        total = weight * total + value
        norm = weight * norm + 1
        means.append(total / norm)
    return means
