"""Samples to one padded batch.

Axis letters: B rows, N tokens of the longest row, T tiles of all rows, S tile side in pixels.
"""

from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from internvl.data.dataset import BadSample
from internvl.model.internvl_chat.modeling_internlm2 import IGNORE_INDEX


@dataclass(frozen=True)
class PaddedCollator:
    """Pads rows on the right to the longest.

    A batch holds ``input_ids``, ``labels`` and ``attention_mask``, int64 (B, N), the mask made from lengths, since any
    token id may occur in a text; ``pixel_values`` float32 (T, 3, S, S) and ``image_flags`` int64 (T,). A batch without
    pictures gets one black tile flagged 0, so that every process runs the vision encoder and gradients can be
    averaged. Rows that could not be read are left out and listed under ``skipped``; a batch of nothing else keeps one
    row of padding without labels, because all processes must take the same number of steps.
    """

    pad_token_id: int
    image_size: int

    def __call__(self, samples: list[dict | BadSample]) -> dict[str, torch.Tensor | list[BadSample]]:
        skipped = [sample for sample in samples if isinstance(sample, BadSample)]
        good = [sample for sample in samples if not isinstance(sample, BadSample)]
        if not good:
            nothing = torch.tensor([self.pad_token_id, self.pad_token_id])
            good = [
                {
                    "input_ids": nothing,
                    "labels": torch.full_like(nothing, IGNORE_INDEX),
                    "pixel_values": None,
                }
            ]
        ids = [sample["input_ids"] for sample in good]
        pixels = [sample["pixel_values"] for sample in good if sample["pixel_values"] is not None]
        if pixels:
            pixel_values = torch.cat(pixels)
            image_flags = torch.ones(len(pixel_values), dtype=torch.long)
        else:
            pixel_values = torch.zeros(1, 3, self.image_size, self.image_size)
            image_flags = torch.zeros(1, dtype=torch.long)
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "labels": pad_sequence(
                [sample["labels"] for sample in good], batch_first=True, padding_value=IGNORE_INDEX
            ),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "pixel_values": pixel_values,
            "image_flags": image_flags,
        }
        if skipped:
            batch["skipped"] = skipped
        return batch
