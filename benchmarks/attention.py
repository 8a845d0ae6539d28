"""Time the attention of packed rows, forward and backward, by the number of rows in a sequence.

    python benchmarks/attention.py --json attention.json

Heads are those of InternVL2-2B. "divided" is the project's way: queries, keys and values are divided once for all
rows. "sliced" takes a slice for each row, whose backward pass fills a tensor of the whole sequence for each of them.
Both ways run in turn, ``--rounds`` times, on the same numbers, with the same gradients; figures are medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from internvl.device import detect_device
from internvl.errors import UserError, ends_on_user_error
from internvl.inference.engine import DTYPES
from internvl.json_files import write_json
from internvl.model.internvl_chat.sequence_layout import SequenceLayout, attend_in_groups

HEADS, KEY_VALUE_HEADS, WIDTH = 16, 8, 128  # of InternLM2-chat-1.8B


def sliced(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: SequenceLayout) -> torch.Tensor:
    """As ``attend_in_groups`` for rows that share nothing, with a slice for each row; return (1, N, H, D)."""
    outputs, start = [], 0
    for length, _ in layout.groups:
        own = (part[:, :, start : start + length] for part in (query, key, value))
        outputs.append(F.scaled_dot_product_attention(*own, is_causal=True, enable_gqa=True))
        start += length
    return torch.cat(outputs, dim=2).transpose(1, 2)


WAYS: dict[str, Callable[..., torch.Tensor]] = {"divided": attend_in_groups, "sliced": sliced}


def run(way: str, inputs: list[torch.Tensor], layout: SequenceLayout) -> tuple[float, float, list[torch.Tensor]]:
    """Return the seconds of the forward and of the backward pass, and the gradients."""
    device = inputs[0].device
    for part in inputs:
        part.grad = None
    marks = [_now(device)]
    output = WAYS[way](*inputs, layout)
    marks.append(_now(device))
    output.backward(torch.ones_like(output))
    marks.append(_now(device))
    return marks[1] - marks[0], marks[2] - marks[1], [part.grad for part in inputs if part.grad is not None]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(num_rows: int, row_tokens: int, rounds: int, dtype: torch.dtype, device: str) -> dict:
    """Return the seconds of both ways for a sequence of ``num_rows`` rows.

    Raises:
        UserError: the ways give other gradients.
    """
    layout = SequenceLayout(((row_tokens, ()),) * num_rows)
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(1, heads, layout.num_tokens, WIDTH, generator=generator).to(device, dtype).requires_grad_()
        for heads in (HEADS, KEY_VALUE_HEADS, KEY_VALUE_HEADS)
    ]
    gradients = {way: run(way, inputs, layout)[2] for way in WAYS}  # the warm-up
    if not all(torch.equal(*pair) for pair in zip(*gradients.values(), strict=True)):
        raise UserError(f"{num_rows} rows: the two ways give other gradients. Please report this.")
    taken = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            taken[way].append(run(way, inputs, layout)[:2])
    figures = {
        way: dict(zip(("forward", "backward"), map(statistics.median, zip(*times, strict=True)), strict=True))
        for way, times in taken.items()
    }
    return {
        "rows": num_rows,
        **figures,
        "backward_faster": figures["sliced"]["backward"] / figures["divided"]["backward"],
    }


def print_figures(figures: dict) -> None:
    title = f"rows of {figures['row_tokens']} tokens ({figures['dtype']}, {figures['device']}); milliseconds"
    table = Table("rows", title=title)
    for column in ("forward", "backward, divided", "backward, sliced", "faster", "backward a row"):
        table.add_column(column, justify="right")
    for point in figures["points"]:
        divided, slow = point["divided"], point["sliced"]
        table.add_row(
            str(point["rows"]), f"{1e3 * divided['forward']:.1f}", f"{1e3 * divided['backward']:.1f}",
            f"{1e3 * slow['backward']:.1f}", f"{point['backward_faster']:.2f} ×",
            f"{1e3 * divided['backward'] / point['rows']:.2f}",
        )  # fmt: skip
    Console().print(table)


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 20, 100], help="default 1, 4, 20 and 100")
    parser.add_argument("--row-tokens", type=int, default=80, help="default %(default)s")
    parser.add_argument("--dtype", choices=list(DTYPES), help="default: the best of this machine")
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    parser.add_argument("--threads", type=int, help="default: PyTorch's own choice")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device, precision, _ = detect_device()
    dtype = args.dtype or precision
    figures = {
        "dtype": dtype,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads",
        "row_tokens": args.row_tokens,
        "points": [measure(rows, args.row_tokens, args.rounds, DTYPES[dtype], device) for rows in args.rows],
    }
    print_figures(figures)
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    main()
