"""Every test here runs on a GPU, where it is marked gpu, and on the CPU, where it is marked slow: its rehearsal."""

import pytest
import torch

from internvl.device import choose_kernels
from tests.train.conftest import captions, model_and_data  # noqa: F401 - fixtures

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(
    params=[pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU]), pytest.param("cpu", marks=pytest.mark.slow)]
)
def device(request) -> str:
    """The device of a test, with exact float32: TF32 is on by default for convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    choose_kernels()
    return request.param


@pytest.fixture
def half(device) -> torch.dtype:
    """What half precision is on the device: a CPU rehearses in float32."""
    return torch.bfloat16 if device == "cuda" else torch.float32
