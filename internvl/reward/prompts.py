"""Questions with their answers: all references of a training on the score, or a chosen and a rejected one."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import Dataset

from internvl.data.batch import BadSample, Idle, Sample
from internvl.data.dataset import ConversationDataset
from internvl.data.sampling import SampleGroup
from internvl.errors import UserError
from internvl.model.internvl_chat.causal_lm import IGNORE_INDEX
from internvl.model.vision_cache import TiledImage


@dataclass(frozen=True)
class Prompt:
    """A conversation up to an open answer.

    ``key`` is its number in the data set, ``input_ids`` int64 (N,) up to where the answer begins, ``reference_ids``
    the tokens of each reference with their end mark.
    """

    key: int
    input_ids: torch.Tensor
    images: tuple[TiledImage, ...]
    references: tuple[str, ...]
    reference_ids: tuple[tuple[int, ...], ...]
    where: str
    epoch: int = 0


@dataclass
class PromptBatch:
    """The prompts of a micro-batch, and the rows that could not be read.

    ``is_idle``: no rank has any row. Holds no labels: those come with the answers that are sampled.
    """

    prompts: list[Prompt]
    skipped: list[BadSample] = field(default_factory=list)
    is_idle: bool = False

    def __contains__(self, name: str) -> bool:
        return False  # transformers' Trainer asks for labels to count


def collate_prompts(items: Sequence[Prompt | list[BadSample] | Idle]) -> PromptBatch:
    """Return the batch of what a data set gave."""
    return PromptBatch(
        [item for item in items if isinstance(item, Prompt)],
        [bad for item in items if isinstance(item, list) for bad in item],
        any(isinstance(item, Idle) for item in items),
    )


class PromptDataset(Dataset):
    """The questions of a data set's rows; rows that differ in their last answer alone are one question's references.

    ``items``, int64 (prompts,), are the items of the data set that prompts are read from, and ``references`` the texts
    of each prompt's.
    """

    def __init__(self, data: ConversationDataset):
        self.data = data
        first: dict[tuple, int] = {}
        texts: dict[tuple, list[str]] = {}
        # A row that an epoch has several times is one reference.
        _, items = np.unique(data.index, axis=0, return_index=True)
        for item in np.sort(items).tolist():
            number, position = data.index[item]
            row = data.files[number][1].row(position)
            key = (data.files[number][0].name, row.images, row.video, row.clip, row.turns[:-1])
            first.setdefault(key, item)
            texts.setdefault(key, []).append(row.turns[-1].value.strip())
        self.items = np.array(list(first.values()), np.int64)
        self.references = [tuple(texts[key]) for key in first]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, group: SampleGroup) -> Prompt | list[BadSample] | Idle:
        """Return the prompt of a group, which has one item: its key."""
        if not group.items:
            return Idle()
        (key,) = group.items
        first = self.data[SampleGroup((int(self.items[key]),), group.epoch)]
        if not isinstance(first, Sample):
            return first
        begin, _ = answer_span(first)
        return Prompt(
            key=key,
            input_ids=first.input_ids[:begin],
            images=tuple(first.images),
            references=self.references[key],
            reference_ids=tuple(_answer_ids(self.data, reference) for reference in self.references[key]),
            where=first.rows[0],
            epoch=group.epoch,
        )


class PreferenceDataset(Dataset):
    """Rows with a chosen and a rejected answer: the references of their prompts, in this order.

    ``lengths``, int64 (rows,), are the tokens of each row with both answers.

    Raises:
        UserError: a row has no ``rejected`` answer, or one that is too long.
    """

    def __init__(self, data: ConversationDataset, lengths: np.ndarray):
        self.data = data
        rejected: dict[tuple[int, int], tuple[int, ...]] = {}
        for number, position in dict.fromkeys(map(tuple, data.index.tolist())):
            row = data.files[number][1].row(position)
            if row.rejected is None:
                raise UserError(
                    f"{row.where}: has no answer in the key 'rejected', which --objective dpo and mpo compare the "
                    "last one with. Add it (tools/make_preferences.py does), or remove the row."
                )
            rejected[number, position] = _answer_ids(data, row.rejected)
        self.rejected = rejected
        self.lengths = lengths + [len(rejected[number, position]) for number, position in data.index.tolist()]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, group: SampleGroup) -> Prompt | list[BadSample] | Idle:
        """Return the prompt of a group, which has one item."""
        if not group.items:
            return Idle()
        sample = self.data[group]
        if not isinstance(sample, Sample):
            return sample
        (item,) = group.items
        number, position = self.data.index[item].tolist()
        row, (begin, end) = self.data.files[number][1].row(position), answer_span(sample)
        room = self.data.settings.max_seq_length - begin  # an answer is cut as those of a finetune are
        return Prompt(
            key=item,
            input_ids=sample.input_ids[:begin],
            images=tuple(sample.images),
            references=(row.turns[-1].value, row.rejected or ""),
            reference_ids=(tuple(sample.input_ids[begin:end].tolist()), self.rejected[number, position][:room]),
            where=sample.rows[0],
            epoch=group.epoch,
        )


def _answer_ids(data: ConversationDataset, text: str) -> tuple[int, ...]:
    """Return the tokens of an answer and its end mark, as training renders them."""
    return tuple(data.tokenizer(text.strip() + data.settings.template.end_mark, add_special_tokens=False)["input_ids"])


def answer_span(sample: Sample) -> tuple[int, int]:
    """Return from which token to which the last answer of a row goes: its last run of supervised tokens.

    Raises:
        UserError: nothing of it is supervised.
    """
    supervised = (sample.labels != IGNORE_INDEX).tolist()
    if not any(supervised):
        raise UserError(f"{sample.rows[0]}: none of its answers is learnt. Give it a weight above 0, or remove it.")
    end = len(supervised) - supervised[::-1].index(True)
    begin = end - 1
    while begin > 0 and supervised[begin - 1]:
        begin -= 1
    return begin, end
