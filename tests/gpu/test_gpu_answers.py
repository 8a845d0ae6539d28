"""Answers on the device: those of the CPU, whatever the batch, the beams and the form of the checkpoint."""

import pytest
import torch

from internvl.evaluation.generation import answer_batch
from internvl.inference.engine import Engine
from internvl.inference.requests import Request
from tests.conftest import make_image

GREEDY = {"max_new_tokens": 8, "do_sample": False}


def requests(engine: Engine) -> list[Request]:
    """Questions of different lengths about images of different shapes."""
    shapes = [(60, 60), (130, 60), (90, 130), (60, 200)]
    return [
        Request([engine.read(make_image(*shape, number), 3)], "Look. " * (5 * number) + "Describe it.")
        for number, shape in enumerate(shapes)
    ]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("member", ["internlm2", "qwen2"])
def test_answers_are_those_of_the_cpu_in_a_batch_and_alone(member, beams, device, tiny_member):
    own, reference = (Engine.load(tiny_member(member), precision="fp32", device=where) for where in (device, "cpu"))
    together = own.answer(requests(own), num_beams=beams, **GREEDY)
    assert together == [own.answer([request], num_beams=beams, **GREEDY)[0] for request in requests(own)]
    assert together == reference.answer(requests(reference), num_beams=beams, **GREEDY)


def test_logits_are_those_of_the_cpu(device, tiny_base):
    logits = []
    for where in (device, "cpu"):
        engine = Engine.load(tiny_base, precision="fp32", device=where)
        request = requests(engine)[1]
        ids = torch.tensor([engine.prompt_ids(request.turns(), [len(image) for image in request.images])])
        tiles = torch.cat([image.tiles for image in request.images])
        with torch.no_grad():
            logits.append(engine.model(pixel_values=tiles.to(where), input_ids=ids.to(where)).logits.cpu())
    assert (logits[0] - logits[1]).abs().max() <= 1e-4 * logits[1].abs().max()


def test_half_precision_answers_have_no_empty_logits(device, half, tiny_base):
    precision = {torch.bfloat16: "bf16", torch.float32: "fp32"}[half]
    engine = Engine.load(tiny_base, precision=precision, device=device)
    assert len(engine.answer(requests(engine), **GREEDY)) == 4
    ids = torch.tensor([[5, 6, 7, 8]] * 2, device=device)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]], device=device)
    with torch.no_grad():
        assert engine.model(input_ids=ids, attention_mask=mask).logits.isfinite().all()


def test_an_adapter_answers_as_its_merged_model(device, trained_adapter):
    engine = Engine.load(trained_adapter, precision="fp32", device=device)
    reference = Engine.load(trained_adapter, precision="fp32", device="cpu")
    assert engine.answer(requests(engine), **GREEDY) == reference.answer(requests(reference), **GREEDY)


def test_a_batch_that_does_not_fit_is_halved(device, tiny_base, monkeypatch):
    engine = Engine.load(tiny_base, precision="fp32", device=device)
    asked, expected, sizes = requests(engine), engine.answer(requests(engine), **GREEDY), []
    answer = engine.answer

    def cramped(batch, **generation):
        sizes.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("no room")
        return answer(batch, **generation)

    monkeypatch.setattr(engine, "answer", cramped)
    assert answer_batch(engine, asked, **GREEDY) == expected and sizes == [4, 2, 1, 1, 2, 1, 1]
