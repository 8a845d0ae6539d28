"""Say what this machine can train on, in one line: device, best precision, number of devices.

    python -m internvl.device        # cuda bf16 8  |  cuda fp16 2  |  cpu fp32 0

"Best" is what a launcher picks for PRECISION=auto. bf16 needs no loss scaling, so it comes before fp16; on a
CPU it works but is slower than fp32 on most machines.
"""

import sys

from internvl.errors import UserError


def best_precision(capabilities: list[tuple[int, int]]) -> str:
    """Precision that every CUDA device runs natively, given their compute capabilities.

    bf16 arithmetic came with compute capability 8.0 (A100). Older devices emulate it, slower than fp16.

    >>> best_precision([(9, 0), (8, 6)]), best_precision([(9, 0), (7, 5)])
    ('bf16', 'fp16')
    """
    return "bf16" if all(capability >= (8, 0) for capability in capabilities) else "fp16"


def is_supported(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Whether a CUDA device runs kernels that were built for ``architectures``, as ``torch.cuda.get_arch_list()`` is.

    A device runs kernels of its own major version, up to its minor one.

    >>> is_supported((8, 6), ["sm_75", "sm_80", "sm_90"]), is_supported((7, 0), ["sm_75", "sm_80", "sm_90"])
    (True, False)
    """
    digits = [name.removeprefix("sm_").rstrip("af") for name in architectures if name.startswith("sm_")]
    built = [(int(text[:-1]), int(text[-1])) for text in digits]
    return not built or any(major == capability[0] and minor <= capability[1] for major, minor in built)


def choose_kernels() -> None:
    """Leave cuDNN's attention out, which PyTorch prefers on H100 and newer.

    It builds an execution plan for every new shape, up to a second each, and a training meets new shapes in nearly
    every micro-batch; flash attention has no such cost. For the whole process: a context around the forward pass
    would not hold where activations are recomputed in the backward pass.
    """
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


def detect_device() -> tuple[str, str, int]:
    """Return device (cuda or cpu), the precision it is best at, and how many there are (0 for a CPU).

    Raises:
        UserError: this build of PyTorch has no kernels for a GPU of this machine.
    """
    import torch  # here, so that importing this module costs nothing

    if not torch.cuda.is_available():
        return "cpu", "fp32", 0
    count = torch.cuda.device_count()
    # ROCm numbers its devices differently; all that today's PyTorch supports have bf16.
    capabilities = [] if torch.version.hip else [torch.cuda.get_device_capability(i) for i in range(count)]
    for index, capability in enumerate(capabilities):
        if not is_supported(capability, torch.cuda.get_arch_list()):
            raise UserError(
                f"{torch.cuda.get_device_name(index)}: has compute capability {capability[0]}.{capability[1]}, and "
                f"torch {torch.__version__} is built for {' '.join(torch.cuda.get_arch_list())}. Install a build for "
                "CUDA 12.6 from https://download.pytorch.org/whl/cu126, or hide the GPU (CUDA_VISIBLE_DEVICES=)."
            )
    return "cuda", best_precision(capabilities), count


def main() -> int:
    try:
        print(*detect_device())  # noqa: T201
    except ImportError as error:
        message = f"torch: cannot be imported ({error}). Run: pip install -r requirements.txt"
        print(message, file=sys.stderr)  # noqa: T201
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
