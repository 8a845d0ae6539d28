"""What a machine's devices can do, told from what PyTorch says about them."""

import pytest
import torch

from internvl import device
from internvl.device import best_precision, choose_kernels, detect_device, is_supported, main

CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((7, 0), False),
        ((7, 5), True),
        ((8, 0), True),
        ((8, 9), True),
        ((9, 0), True),
        ((6, 1), False),
        ((12, 1), True),
    ],
)
def test_a_gpu_needs_kernels_of_its_own_generation(capability, runs):
    assert is_supported(capability, CU130) is runs
    assert is_supported(capability, ["sm_90a", "compute_90"]) is (capability == (9, 0))
    assert is_supported(capability, [])  # a build that does not say


def test_bf16_is_best_where_all_gpus_have_it():
    assert best_precision([(9, 0), (8, 6)]) == "bf16" and best_precision([(9, 0), (7, 5)]) == "fp16"


@pytest.fixture
def v100(monkeypatch):
    """A machine with one V100."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: CU130)


def test_a_gpu_without_kernels_is_refused_with_the_build_to_take(v100, capsys):
    assert main() == 2
    message = capsys.readouterr().err
    assert message.startswith("error: Tesla V100: has compute capability 7.0") and "whl/cu126" in message
    assert len(message.splitlines()) == 1


def test_hiding_that_gpu_is_a_way_on(v100, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # what CUDA_VISIBLE_DEVICES= does
    assert detect_device() == ("cpu", "fp32", 0)


def test_cudnn_attention_is_left_out():
    assert device.choose_kernels is choose_kernels
    choose_kernels()
    assert not torch.backends.cuda.cudnn_sdp_enabled()
