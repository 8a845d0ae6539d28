"""Rows of every kind that can share, and models with LoRA to train on them."""

import json
from pathlib import Path

import pytest
import torch

from internvl.data.dataset import ConversationDataset
from internvl.data.meta import DatasetSpec
from internvl.data.tokenize import RenderSettings
from internvl.model.adapter import choose_trainable
from internvl.model.internvl_chat.conversation import get_conv_template
from internvl.model.loading import load_model
from internvl.model.lora_recipe import LoraRecipe
from tests.conftest import make_image
from tests.train.one_step import MAX_LENGTH

NUM_ROWS = 16


@pytest.fixture(scope="session")
def captions(tmp_path_factory):
    """16 rows: five captions of one image, questions of two kinds about another, two images, text, a lone row."""
    folder = tmp_path_factory.mktemp("captions")
    for number, size in enumerate([(60, 60), (130, 60), (90, 130)]):
        make_image(*size, number).save(folder / f"{number}.png")
    for number in range(6):  # frames of an agent: one tile each, however many there are
        make_image(60, 60, 20 + number).save(folder / f"frame{number}.png")
    rows = []

    def add(question, answer, image=None, **fields):
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}, *fields.get("more", [])]
        rows.append({"conversations": turns, **({"image": image} if image else {})})

    for number in range(5):
        add("<image>\nDescribe it.", "Pattern with " + "many " * number + "waves.", "1.png")
    for number in range(3):
        add("<image>\nHow many colours?", f"Pattern has {number + 1}.", "2.png")
        add("<image>\nAre there waves?", "many waves", "2.png")
    more = [{"from": "human", "value": "And plus one?"}, {"from": "gpt", "value": "has 3."}]
    add("<image>\nDescribe it.", "Pattern again.", "2.png", more=more)
    add("<image><image>\nCompare them.", "many colours and waves", ["0.png", "1.png"])
    add("<image><image>\nCompare them.", "colours", ["0.png", "1.png"])
    add("What is 3 plus one?", "Pattern 3 has 4 " * 9)
    add("<image>\nDescribe it.", "waves.", "0.png")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(rows) == NUM_ROWS
    return folder


@pytest.fixture
def model_and_data(tiny_member, captions):
    def make(llm=8, vit=0, member="internlm2", rows: Path | None = None, **way):
        base = tiny_member(member)  # which draws numbers when it is made
        torch.manual_seed(0)
        model, tokenizer = load_model(base)
        choose_trainable(
            model,
            freeze_llm=True,
            freeze_backbone=True,
            freeze_mlp=True,
            use_llm_lora=llm,
            use_backbone_lora=vit,
            lora=LoraRecipe(dropout=0.0),
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)  # zero at first: nothing would reach lora_A
        settings = RenderSettings(
            template=get_conv_template(model.config.template),
            image_size=56,
            num_image_token=4,
            max_seq_length=MAX_LENGTH,
        )
        data = ConversationDataset(
            [DatasetSpec("rows", captions, (rows or captions / "rows.jsonl",))],
            tokenizer,
            settings,
            vision_cache=way.get("c"),
        )
        return model.train(), tokenizer, data

    return make
