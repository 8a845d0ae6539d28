"""A checkpoint in transformers' own InternVL layout, seen under the published names."""

from functools import cached_property

import torch

from internvl.errors import UserError
from internvl.model.checkpoint import Checkpoint, TensorInfo
from internvl.model.hf_config import ORIGINAL, original_config, parse_config
from internvl.model.hf_names import hf_names, join, split, tied_output
from internvl.model.internvl_chat.configuration_internvl_chat import InternVLChatConfig
from internvl.model.internvl_chat.modeling_internvl_chat import InternVLChatModel


def published_tensors(config: InternVLChatConfig) -> dict[str, torch.Tensor]:
    """Return the tensors a published checkpoint of this configuration holds, on the meta device: shapes only."""
    with torch.device("meta"):
        return dict(InternVLChatModel(config).state_dict())


def check_tensors(checkpoint: Checkpoint, wanted: dict[str, tuple[int, ...]], optional: str | None) -> None:
    """Refuse a checkpoint that lacks a tensor, has one without a place, or one of another shape.

    Raises:
        UserError: names the first such tensor.
    """
    stored = checkpoint.tensors
    missing = [name for name in wanted if name not in stored and name != optional]
    if missing:
        raise UserError(
            f"{checkpoint.folder}: lacks {len(missing)} of the model's {len(wanted)} tensors, first {missing[0]}. "
            "Copy the complete checkpoint there."
        )
    for name, info in stored.items():
        if name not in wanted:
            raise UserError(
                f"{checkpoint.folder}: holds {name}, which the other layout has no place for. Remove it, or keep the "
                "checkpoint in this layout."
            )
        if info.shape != wanted[name]:
            raise UserError(
                f"{checkpoint.folder}: {name} has shape {info.shape}, and config.json makes it {wanted[name]}. Put "
                "the weights and the config of one checkpoint there."
            )


class PublishedView(Checkpoint):
    """A whole model in transformers' layout as if it lay there in the published one; tensors are joined when read.

    ``config`` is the published ``config.json`` that it was converted from, with what has been changed since.
    """

    is_published = False

    def __init__(self, checkpoint: Checkpoint):
        super().__init__(checkpoint.folder)
        self.stored = checkpoint

    @cached_property
    def config(self) -> dict:
        return original_config(self.stored.config, self.folder / "config.json")

    @cached_property
    def parsed_config(self) -> InternVLChatConfig:
        return parse_config(self.config, self.folder / "config.json")

    @property
    def generation(self) -> dict:
        """The published generation settings, as far as there were some."""
        return self.stored.config[ORIGINAL].get("generation_config", {})

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Published name → where its first part is, its whole shape and its dtype.

        Raises:
            UserError: a tensor is missing, has no place, or another shape than the config makes it.
        """
        config, stored = self.parsed_config, self.stored.tensors
        published, wanted = published_tensors(config), {}
        for name, tensor in published.items():
            parts = split(name, tensor, config)
            wanted.update({new: tuple(part.shape) for new, part in zip(hf_names(name), parts, strict=True)})
        tied = tied_output(config)
        check_tensors(self.stored, wanted, hf_names(tied)[0] if tied else None)
        first = {name: stored.get(hf_names(name)[0]) for name in published}
        return {
            name: TensorInfo(info.file, tuple(published[name].shape), info.dtype)
            for name, info in first.items()
            if info is not None
        }

    def tensor(self, name: str) -> torch.Tensor:
        return join(name, [self.stored.tensor(part) for part in hf_names(name)], self.parsed_config)
