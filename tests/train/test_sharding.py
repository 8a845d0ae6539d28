"""How often sharded modules run: given numbers of calls, some of them empty, change neither loss nor gradients."""

import importlib

import pytest
import torch

from internvl.distributed import COMPILED_REDUCTION, leave_out_compiled_reduction
from internvl.model.internvl_chat import causal_lm, modeling_internvl_chat
from internvl.model.internvl_chat.causal_lm import IGNORE_INDEX
from internvl.model.loading import load_model
from internvl.train import sharding
from internvl.train.sharding import equal_calls


def step(folder, num_tiles: int, **calls):
    """Loss and gradients of the projector and the output layer."""
    model, tokenizer = load_model(folder)
    model.vision_model.requires_grad_(False)
    model.img_context_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    prompt = model.build_prompt([("<image>\nWhat?", "Waves.")], [num_tiles])
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    pixels = torch.randn(num_tiles, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :-6] = IGNORE_INDEX
    loss = model(pixel_values=pixels, input_ids=ids, labels=labels, return_logits=False, **calls).loss
    loss.backward()
    return loss.item(), model.mlp1[1].weight.grad, model.get_output_embeddings().weight.grad


@pytest.mark.parametrize("llm", ["internlm2", "qwen3"])
@pytest.mark.parametrize("calls", [{"num_loss_chunks": 3}, {"num_loss_chunks": 9}, {"num_vision_calls": 5}], ids=str)
def test_any_number_of_calls_gives_the_same_step(tiny_member, llm, calls):
    plain, divided = step(tiny_member(llm), 2), step(tiny_member(llm), 2, **calls)
    assert divided[0] == pytest.approx(plain[0], rel=1e-6)
    for got, wanted in zip(divided[1:], plain[1:], strict=True):
        assert (got - wanted).abs().max() <= 1e-6 * wanted.abs().max()


@pytest.mark.parametrize(
    ("tiles", "supervised", "expected"), [(0, 0, (1, 1)), (1, 1, (1, 1)), (33, 512, (2, 1)), (64, 1025, (2, 3))]
)
def test_a_micro_batch_takes_as_many_calls_as_its_tiles_and_labels_need(tiles, supervised, expected):
    labels = torch.full((1, 2000), IGNORE_INDEX)
    labels[0, 1 : supervised + 1] = 5
    calls = equal_calls(labels, torch.zeros(tiles, 3, 1, 1) if tiles else None)
    assert (calls["num_vision_calls"], calls["num_loss_chunks"]) == expected
    assert sharding.VISION_BATCH == modeling_internvl_chat.VISION_BATCH == 32
    assert sharding.LOSS_CHUNK == causal_lm.LOSS_CHUNK == 512


def test_deepspeed_compiles_no_reduction_of_its_own_for_cpus():
    deepspeed = pytest.importorskip("deepspeed")
    assert COMPILED_REDUCTION in deepspeed.ops.__compatible_ops__
    leave_out_compiled_reduction()
    assert deepspeed.ops.__compatible_ops__[COMPILED_REDUCTION] is False
    assert importlib.import_module("deepspeed.comm.torch").build_shm_op() is None
