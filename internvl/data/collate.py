"""Samples to one batch: padded rows, or units one behind the other without padding.

Axis letters: B rows, N tokens of the longest row or of all units, T tiles of all rows, S tile side in pixels.
"""

from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from internvl.data.dataset import BadSample
from internvl.model.internvl_chat.modeling_internlm2 import IGNORE_INDEX
from internvl.model.internvl_chat.sequence_layout import SequenceLayout
from internvl.model.vision_cache import TiledImage


@dataclass(frozen=True)
class Collator:
    """Makes batches of samples as ``ConversationDataset`` returns them.

    A padded batch holds ``input_ids``, ``labels`` and ``attention_mask``, int64 (B, N), padded on the right, the mask
    made from lengths, since any token id may occur in a text. With ``packed``, a batch is one sequence, (1, N), and
    a ``layout`` takes the mask's place; groups that share an image need it.

    Images come as ``pixel_values``, uint8 (T, 3, S, S), and ``image_flags``, int64 (T,); with ``keep_images`` as
    the list ``images`` instead, for whoever has their features. A batch without any gets one black tile flagged 0,
    so that every process runs the vision encoder and gradients can be averaged.

    With ``name_rows``, ``rows`` says which they are, as file:line.

    Rows that could not be read are left out and listed under ``skipped``. A batch without rows keeps one of padding
    without labels, because all processes must take the same number of steps; ``idle`` says that no process has any.
    """

    pad_token_id: int
    image_size: int
    packed: bool = False
    keep_images: bool = False
    name_rows: bool = False

    def __call__(self, samples: list[dict | list[BadSample] | None]) -> dict:
        skipped = [bad for sample in samples if isinstance(sample, list) for bad in sample]
        good = [sample for sample in samples if isinstance(sample, dict)] or [self.nothing()]
        batch = self.pack(good) if self.packed else self.pad(good)
        images = [image for sample in good for image in sample["images"]]
        batch |= {"images": images} if self.keep_images else self.pixels(images)
        if self.name_rows:
            batch["rows"] = [where for sample in good for where in sample["where"]]
        if skipped:
            batch["skipped"] = skipped
        if None in samples:
            batch["idle"] = True
        return batch

    def nothing(self) -> dict:
        """Return the sample of no row."""
        padding = torch.tensor([self.pad_token_id] * 2)
        return {
            "input_ids": padding,
            "labels": torch.full_like(padding, IGNORE_INDEX),
            "group": (2, ()),
            "images": [],
            "where": [],
        }

    def pad(self, samples: list[dict]) -> dict:
        ids = [sample["input_ids"] for sample in samples]
        labels = [sample["labels"] for sample in samples]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        }

    def pack(self, samples: list[dict]) -> dict:
        return {
            "input_ids": torch.cat([sample["input_ids"] for sample in samples])[None],
            "labels": torch.cat([sample["labels"] for sample in samples])[None],
            "layout": SequenceLayout(tuple(sample["group"] for sample in samples)),
        }

    def pixels(self, images: list[TiledImage]) -> dict[str, torch.Tensor]:
        if images:
            pixel_values = torch.cat([image.tiles for image in images])
            image_flags = torch.ones(len(pixel_values), dtype=torch.long)
        else:
            pixel_values = torch.zeros(1, 3, self.image_size, self.image_size, dtype=torch.uint8)
            image_flags = torch.zeros(1, dtype=torch.long)
        return {"pixel_values": pixel_values, "image_flags": image_flags}
