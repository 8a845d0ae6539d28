"""Say what this machine can train on, in one line: device, best precision, number of devices.

    python -m internvl.device        # cuda bf16 8  |  cuda fp16 2  |  cpu fp32 0

"Best" is what a launcher picks for PRECISION=auto. bf16 needs no loss scaling, so it comes before fp16; on a
CPU it works but is slower than fp32 on most machines.
"""

import sys


def best_precision(capabilities: list[tuple[int, int]]) -> str:
    """Precision that every CUDA device runs natively, given their compute capabilities.

    bf16 arithmetic came with compute capability 8.0 (A100). Older devices emulate it, slower than fp16.

    >>> best_precision([(9, 0), (8, 6)]), best_precision([(9, 0), (7, 5)])
    ('bf16', 'fp16')
    """
    return "bf16" if all(capability >= (8, 0) for capability in capabilities) else "fp16"


def detect_device() -> tuple[str, str, int]:
    """Return device (cuda or cpu), the precision it is best at, and how many there are (0 for a CPU)."""
    import torch  # here, so that importing this module costs nothing

    if not torch.cuda.is_available():
        return "cpu", "fp32", 0
    count = torch.cuda.device_count()
    # ROCm numbers its devices differently; all that today's PyTorch supports have bf16.
    capabilities = [] if torch.version.hip else [torch.cuda.get_device_capability(i) for i in range(count)]
    return "cuda", best_precision(capabilities), count


def main() -> int:
    try:
        print(*detect_device())  # noqa: T201
    except ImportError as error:
        message = f"torch: cannot be imported ({error}). Run: pip install -r requirements.txt"
        print(message, file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
