"""Preferences against TRL's own trainer, on the same model in transformers' layout; where TRL is installed."""

import pytest
import torch

from internvl.commands.convert_to_hf import main as convert
from internvl.data.batch import Collator
from internvl.model.internvl_chat.image_processing_internvl_chat import normalize_pixels
from internvl.model.loading import load_model
from internvl.reward.objective import make_batch
from tests.reward.conftest import MEMBERS
from tests.reward.test_preference import Looked, make_pairs  # noqa: F401 - a fixture

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl")


OUTPUTS = ("down_proj.weight", "o_proj.weight", "feed_forward.w2.weight", "attention.wo.weight")


@torch.no_grad()
def change(model):
    """Make another model of it: what layers of the language model give is scaled."""
    for name, parameter in model.named_parameters():
        if "language_model" in name and name.endswith(OUTPUTS):
            parameter.mul_(1.3)
    return model


def as_trl_has_it(prompts, pad_id):
    """Return the inputs of TRL's loss: all chosen answers, then all rejected ones."""
    rows = [(p.input_ids.tolist(), list(p.reference_ids[side]), p.images) for side in range(2) for p in prompts]
    longest = max(len(prompt) + len(answer) for prompt, answer, _ in rows)
    columns = {"input_ids": [], "attention_mask": [], "completion_mask": []}
    for prompt, answer, _ in rows:
        padding = longest - len(prompt) - len(answer)
        columns["input_ids"].append(prompt + answer + [pad_id] * padding)
        columns["attention_mask"].append([1] * (longest - padding) + [0] * padding)
        columns["completion_mask"].append([0] * len(prompt) + [1] * len(answer) + [0] * padding)
    tiles = torch.cat([image.tiles for _, _, images in rows for image in images])
    return {name: torch.tensor(values) for name, values in columns.items()} | {"pixel_values": normalize_pixels(tiles)}


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("objective", ["dpo", "mpo"])
def test_loss_and_gradient_equal_trls(member, objective, make_pairs, tiny_member, tmp_path):  # noqa: F811
    from datasets import Dataset
    from transformers import AutoModelForImageTextToText, AutoProcessor

    _, tokenizer, prompts = make_pairs(member)
    prompts = [prompt for prompt in prompts if prompt.images]
    convert([str(tiny_member(member)), str(tmp_path / "hf")])
    policy, start = (AutoModelForImageTextToText.from_pretrained(tmp_path / "hf") for _ in range(2))
    losses = {"dpo": (["sigmoid"], [1.0]), "mpo": (["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0])}[objective]
    user, answers = [{"role": "user", "content": "a"}], [[{"role": "assistant", "content": text}] for text in "bc"]
    row = {"prompt": user, "chosen": answers[0], "rejected": answers[1], "images": []}
    trainer = trl.DPOTrainer(
        model=change(policy),
        ref_model=start,
        args=trl.DPOConfig(
            output_dir=str(tmp_path / "out"), beta=0.7, loss_type=losses[0], loss_weights=losses[1], use_cpu=True,
            report_to=[], bf16=False, gradient_checkpointing=False, max_steps=1,
        ),
        train_dataset=Dataset.from_list([row]).to_iterable_dataset(),
        processing_class=AutoProcessor.from_pretrained(tmp_path / "hf"),
    )  # fmt: skip
    theirs = trainer._compute_loss(policy.eval(), as_trl_has_it(prompts, tokenizer.pad_token_id), False)
    theirs.backward()

    model = load_model(tiny_member(member)).model.eval()
    model.requires_grad_(False).language_model.requires_grad_(True)
    own = Looked(model, Collator(tokenizer.pad_token_id, 56, packed=True), objective, 0.7)
    change(model)
    with torch.no_grad():
        weighted = own.weighted(prompts, len(prompts), sum(len(prompt.reference_ids[0]) for prompt in prompts))
    assert weighted.loss == pytest.approx(theirs.item(), abs=1e-5)
    assert abs(weighted.loss - 0.6931) > 0.02  # it is no longer the start
    inputs = make_batch(prompts, weighted.answers, weighted.weights, own.collate).model_inputs()
    model(**inputs, num_items_in_batch=1, return_logits=False).loss.backward()
    gradient, other = model.language_model.get_output_embeddings().weight.grad, policy.lm_head.weight.grad
    assert (gradient - other).abs().max() <= 1e-5 * other.abs().max()
