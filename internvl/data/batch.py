"""What one forward pass takes: samples as the data set returns them, and the batch that the collator makes of them.

Axis letters: B rows, N tokens of the longest row or of all samples, T tiles of all rows, S tile side in pixels.
"""

from collections.abc import Callable, KeysView, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from internvl.data.grouping import SharedRows
from internvl.model.internvl_chat.causal_lm import IGNORE_INDEX
from internvl.model.internvl_chat.sequence_layout import PrefixTree, SequenceLayout
from internvl.model.vision_cache import TiledImage


@dataclass
class Sample:
    """A row, or several that share their images in one sequence.

    ``input_ids`` and ``labels`` are int64 (N,). ``tree`` says which tokens the rows have in common, as
    ``SequenceLayout`` describes a group; a single row is (N, ()). ``images`` are those of the sequence in its order.
    ``rows`` are their places, as file:line. ``weights``, float32 (N,), are what each token's loss counts, 0 where it
    is not supervised; None where each supervised one counts 1. ``skipped`` are rows of it that could not be read.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    tree: PrefixTree
    images: list[TiledImage] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    weights: torch.Tensor | None = None
    skipped: "list[BadSample]" = field(default_factory=list)

    @classmethod
    def of(cls, shared: SharedRows, images: list[TiledImage], rows: list[str], **fields: Any) -> "Sample":
        """Return the sample of rows in one sequence; ``fields`` are others of the sample."""
        return cls(
            input_ids=torch.tensor(shared.input_ids),
            labels=torch.tensor(shared.labels),
            tree=shared.tree,
            images=images,
            rows=rows,
            weights=torch.tensor(shared.weights) if shared.weights else None,
            **fields,
        )


class BadSample(NamedTuple):
    """A row that could not be read during training, and why; the collator leaves it out and counts it."""

    where: str
    reason: str


class Idle:
    """The item of a micro-batch in which no rank has any row, so that none calls the model."""


SampleResult = Sample | list[BadSample] | Idle


@dataclass
class Batch:
    """A micro-batch: the model's inputs by name, and what the trainer needs beside them.

    ``inputs`` are ``input_ids``, ``labels`` and ``attention_mask``, int64 (B, N), padded on the right; of a packed
    batch, one sequence (1, N) with a ``layout`` in the mask's place. ``loss_weight``, float32 (B, N), is among them
    where an answer counts more or less than 1. Images are ``pixel_values``, uint8 (T, 3, S, S), among the
    inputs, with ``image_flags``, int64 (T,), where the one tile there is stands for none; or ``images``, for whoever
    looks up their features.

    ``rows`` are the places of its rows, ``skipped`` those that could not be read. ``is_idle``: no rank has any row.
    ``logged_loss`` is what is shown where the loss itself says nothing: that of answers weighted for their gradient.
    Reads as a mapping of ``inputs``, which is how transformers' Trainer counts labels and tokens.
    """

    inputs: dict[str, Any]
    images: list[TiledImage] | None = None
    rows: list[str] = field(default_factory=list)
    skipped: list[BadSample] = field(default_factory=list)
    is_idle: bool = False
    logged_loss: float | None = None

    def __getitem__(self, name: str) -> Any:
        return self.inputs[name]

    def __contains__(self, name: str) -> bool:
        return name in self.inputs

    @property
    def num_supervised(self) -> torch.Tensor:
        """Number of labels that count, an int64 scalar; the first of a row predicts nothing."""
        return (self.inputs["labels"][:, 1:] != IGNORE_INDEX).sum()

    @property
    def supervised_weight(self) -> torch.Tensor:
        """What the labels that count weigh together, a float32 scalar: their number, where each counts 1."""
        if "loss_weight" not in self.inputs:
            return self.num_supervised.float()
        return self.inputs["loss_weight"][:, 1:].sum()

    def keys(self) -> KeysView[str]:
        """Return the names of the inputs."""
        return self.inputs.keys()

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """Return the batch with its inputs on ``device``; ``non_blocking`` as of ``torch.Tensor.to``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Return the batch with its inputs in page-locked memory; the data loader asks for it."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        inputs = {
            name: change(value) if isinstance(value, torch.Tensor) else value for name, value in self.inputs.items()
        }
        return replace(self, inputs=inputs)

    def model_inputs(self, features: torch.Tensor | None = None) -> dict:
        """Return the keyword arguments of the model's forward; ``features`` are those of ``images``, (T, P, C).

        The mask is not among them: attention is causal, so no token sees the padding behind it, and the kernels
        without a mask are the fast ones.
        """
        inputs = {name: value for name, value in self.inputs.items() if name != "attention_mask"}
        return inputs if self.images is None else {**inputs, "visual_features": features}


def sample_weights(sample: Sample) -> torch.Tensor:
    """Return what each token's loss of a sample counts, float32 (N,)."""
    return sample.weights if sample.weights is not None else (sample.labels != IGNORE_INDEX).float()


def _skipped(sample: SampleResult) -> list[BadSample]:
    """Return the rows of a group that could not be read."""
    return sample if isinstance(sample, list) else sample.skipped if isinstance(sample, Sample) else []


@dataclass(frozen=True)
class Collator:
    """Makes batches of samples as ``ConversationDataset`` returns them.

    Padded, or with ``packed`` one sequence, which samples of several rows need. The mask is made from lengths, since
    any token id may occur in a text. With ``keep_images`` a batch has ``images`` instead of pixels. A batch of pixels
    without any image gets one black tile flagged 0, so that every rank runs the vision encoder and gradients can be
    averaged.

    Rows that could not be read are left out and listed. A batch without rows keeps one of padding without labels,
    because all ranks must take the same number of steps.
    """

    pad_token_id: int
    image_size: int
    packed: bool = False
    keep_images: bool = False

    def __call__(self, samples: Sequence[SampleResult]) -> Batch:
        good = [sample for sample in samples if isinstance(sample, Sample)] or [self.dummy_sample()]
        images = [image for sample in good for image in sample.images]
        inputs = self.pack(good) if self.packed else self.pad(good)
        if any(sample.weights is not None for sample in good):
            inputs["loss_weight"] = self.join([sample_weights(sample) for sample in good], padding=0.0)
        return Batch(
            inputs=inputs if self.keep_images else inputs | self.pixels(images),
            images=images if self.keep_images else None,
            rows=[where for sample in good for where in sample.rows],
            skipped=[bad for sample in samples for bad in _skipped(sample)],
            is_idle=any(isinstance(sample, Idle) for sample in samples),
        )

    def dummy_sample(self) -> Sample:
        """Return the sample of no row: padding, of which nothing is supervised."""
        padding = torch.tensor([self.pad_token_id] * 2)
        return Sample(padding, torch.full_like(padding, IGNORE_INDEX), tree=(2, ()))

    def join(self, parts: list[torch.Tensor], padding: float) -> torch.Tensor:
        """Return one tensor of each sample, (N,), as the batch has its samples: padded (B, N), or packed (1, N)."""
        return torch.cat(parts)[None] if self.packed else pad_sequence(parts, batch_first=True, padding_value=padding)

    def pad(self, samples: list[Sample]) -> dict[str, torch.Tensor | SequenceLayout]:
        """Return the rows as (B, N), padded on the right."""
        ids = [sample.input_ids for sample in samples]
        labels = [sample.labels for sample in samples]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        }

    def pack(self, samples: list[Sample]) -> dict[str, torch.Tensor | SequenceLayout]:
        """Return the samples one behind the other, (1, N)."""
        return {
            "input_ids": torch.cat([sample.input_ids for sample in samples])[None],
            "labels": torch.cat([sample.labels for sample in samples])[None],
            "layout": SequenceLayout(tuple(sample.tree for sample in samples)),
        }

    def pixels(self, images: list[TiledImage]) -> dict[str, torch.Tensor]:
        """Return the tiles of all images, or one that is flagged as none."""
        if images:
            return {"pixel_values": torch.cat([image.tiles for image in images])}
        dummy = torch.zeros(1, 3, self.image_size, self.image_size, dtype=torch.uint8)
        return {"pixel_values": dummy, "image_flags": torch.zeros(1, dtype=torch.long)}
