"""What LoRA trains and how its product is scaled: the flags of a finetune, as PEFT's settings."""

from collections.abc import Sequence
from dataclasses import dataclass

from peft import LoraConfig
from torch import nn

from internvl.errors import UserError
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.language_models import language_model_of
from internvl.model.internvl_chat.modeling_internvl_chat import BACKBONE_LORA_TARGETS, InternVLChatModel

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoraRecipe:
    """Settings of LoRA beside its ranks.

    ``alpha`` scales B A by alpha / rank, or with ``use_rslora`` by alpha / √rank (arXiv:2312.03732); None is twice the
    rank. ``use_dora`` trains lengths of rows apart from their directions (arXiv:2402.09353). ``dropout`` is on LoRA's
    input. ``targets`` are names of linear layers of the language model's blocks, by their ends; None takes all that
    the original does, which are all there are.
    """

    dropout: float = 0.05
    alpha: int | None = None
    use_rslora: bool = False
    use_dora: bool = False
    targets: tuple[str, ...] | None = None

    @property
    def fits_whole_checkpoints(self) -> bool:
        """Whether it is the one recipe that LoRA inside a whole checkpoint can have: the original trainer's."""
        return (self.alpha, self.use_rslora, self.use_dora, self.targets) == (None, False, False, None)

    def llm_targets(self, model: InternVLChatModel) -> list[str]:
        """Return the ends of the names of the language model's layers that get LoRA, like ``attention.wqkv``.

        Raises:
            UserError: a target names no linear layer of a block.
        """
        if self.targets is None:
            return list(language_model_of(model.config.llm_config).lora_targets)
        block = model.language_model.model.layers[0]
        there = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
        if self.targets == (ALL_LINEAR,):
            return there
        chosen: list[str] = []
        for target in self.targets:
            found = [name for name in there if name == target or name.endswith(f".{target}")]
            if not found:
                raise UserError(
                    f"--lora_target_modules: {target!r} is no linear layer of the language model's blocks. Choose "
                    f"from: {', '.join(there)}, or {ALL_LINEAR}."
                )
            chosen += [name for name in found if name not in chosen]
        return chosen

    def peft_config(self, config: InternVLChatConfig, llm_targets: Sequence[str], **more) -> LoraConfig:
        """Return PEFT's settings for LoRA of the ranks that ``config`` names; ``more`` goes into them, too."""
        ranks = {"llm": config.use_llm_lora, "backbone": config.use_backbone_lora}
        ranks = {part: rank for part, rank in ranks.items() if rank}
        targets = {"llm": llm_targets, "backbone": BACKBONE_LORA_TARGETS}
        first = next(iter(ranks.values()))
        pattern = {target: rank for part, rank in ranks.items() for target in targets[part] if rank != first}
        return LoraConfig(
            r=first,
            lora_alpha=self.alpha or 2 * first,
            lora_dropout=self.dropout,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            target_modules=[target for part in ranks for target in targets[part]],
            rank_pattern=pattern,
            alpha_pattern={} if self.alpha else {target: 2 * rank for target, rank in pattern.items()},
            **more,
        )
