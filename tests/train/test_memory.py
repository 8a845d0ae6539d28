"""The memory plan against what autograd keeps, and which layers recompute."""

import json

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from internvl.model.adapter import choose_trainable
from internvl.model.internvl_chat import InternVLChatConfig, InternVLChatModel
from internvl.model.internvl_chat.sequence_layout import SequenceLayout
from internvl.model.loading import load_model
from internvl.model.lora_recipe import LoraRecipe
from internvl.train import memory
from internvl.train.memory import MicroBatch, plan_memory, recompute_activations, saved_bytes

TOKENS = 200


def make_model(tiny_base, dropout=0.05, **lora):
    model = load_model(tiny_base).model
    choose_trainable(model, freeze_llm=True, freeze_backbone=True, freeze_mlp=True, lora=LoraRecipe(dropout), **lora)
    return model.train()


def plan(model, recompute="auto", dropout=0.05, **options):
    return plan_memory(
        model,
        MicroBatch(tokens=TOKENS, tiles=4),
        dtype=torch.float32,
        device=torch.device("cpu"),
        recompute=recompute,
        **options,
    )


@pytest.mark.parametrize("dropout", [0.0, 0.05])
@pytest.mark.parametrize("recompute", ["false", "true"])
def test_planned_activations_are_those_that_autograd_keeps(tiny_base, dropout, recompute):
    model = make_model(tiny_base, dropout, use_llm_lora=8)
    planned = plan(model, recompute, dropout)
    recompute_activations(model, planned.num_recomputed)
    ids, layout = torch.randint(5, 300, (1, TOKENS)), SequenceLayout(((TOKENS, ()),))
    states = saved_bytes(lambda: model.language_model.model(input_ids=ids, layout=layout).last_hidden_state, model)
    expected = planned.activations - (planned.per_layer if recompute == "true" else 0)
    assert states == pytest.approx(expected, rel=0.05)


def test_auto_recomputes_as_few_layers_as_fit(tiny_base, monkeypatch):
    model = make_model(tiny_base, use_llm_lora=8)
    whole = plan(model, "false")
    saved = whole.per_layer - whole.layer_input
    monkeypatch.setattr(memory, "program_bytes", lambda *_: whole.program)
    for short, expected in ((0, 0), (1, 2), (whole.total, 2)):
        # One layer that recomputes is whole meanwhile, so the first saves nothing.
        monkeypatch.setattr(memory, "available_bytes", lambda _, short=short: whole.total - short)
        assert plan(model).num_recomputed == expected, (short, saved)


def test_adapter_weights_gradients_and_optimizer_are_counted(tiny_base):
    model = make_model(tiny_base, use_llm_lora=8)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert plan(model).trained == 12 * trained
    assert plan(model, shards=4).trained == (8 // 4 + 4) * trained
    assert plan(model).weights == sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize(
    ("vit", "number", "expected"), [(0, 1, (1, 0)), (0, 2, (2, 0)), (4, 1, (1, 0)), (4, 2, (2, 3))]
)
def test_only_layers_with_gradients_recompute(tiny_base, vit, number, expected):
    model = make_model(tiny_base, use_llm_lora=8, use_backbone_lora=vit)
    recompute_activations(model, number)
    found = [
        sum(m.gradient_checkpointing for m in part.modules() if isinstance(m, GradientCheckpointingLayer))
        for part in (model.language_model, model.vision_model)
    ]
    assert tuple(found) == expected


def test_the_peak_is_forgotten_and_measured_anew():
    block = torch.ones(60 << 20, dtype=torch.uint8)
    high = memory.read_peak()
    del block
    memory.reset_peak()
    assert memory.read_peak() < high - (30 << 20)


@pytest.mark.parametrize(("dropout", "kilobytes"), [(0.05, 148.7), (0.0, 132.3)])
def test_the_plan_for_a_gpu_counts_what_cuda_keeps(shared, monkeypatch, dropout, kilobytes):
    """Against the saved tensors of a layer of the 2B model, counted with fake CUDA tensors: bf16, one COCO group."""
    monkeypatch.setattr(memory, "available_bytes", lambda device: 80 << 30)
    config = InternVLChatConfig.from_dict(json.loads((shared / "internvl2_2b" / "config.json").read_text()))
    with torch.device("meta"):
        model = InternVLChatModel(config).to(torch.bfloat16)
    frozen = {"freeze_llm": True, "freeze_backbone": True, "freeze_mlp": True}
    trained = choose_trainable(model, **frozen, use_llm_lora=128, lora=LoraRecipe(dropout))
    tokens = 1850 + 180
    plan = plan_memory(
        trained,
        MicroBatch(tokens, 7),
        dtype=torch.bfloat16,
        device=torch.device("cuda"),
    )
    assert plan.per_layer / tokens / 1000 == pytest.approx(kilobytes, rel=0.05)
