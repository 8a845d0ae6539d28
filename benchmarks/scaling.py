"""Train the same steps on 1, 2, 4 processes, with ZeRO-1/2/3, FSDP2 and on two nodes: same losses, what each costs.

    python benchmarks/scaling.py --json scaling.json

Every run is the habitat launcher on the shipped tiny base; "two nodes" are two launchers on the loopback with
NNODES=2. On few cores more processes are not faster: what is compared are the losses, and the time shows what the
communication of each way adds.
"""

import argparse
import json
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from measuring import run_logged
from rich.console import Console
from rich.table import Table

from internvl.device import detect_device
from internvl.errors import UserError, ends_on_user_error
from internvl.json_files import write_json

LORA = "shell/internvl2.0/habitat_2b_finetune/lora.sh"
ROWS = 16
# Sums of gradients in another order, in float32.
TOLERANCE = 1e-4
FLAGS = ["--lora_dropout", "0.0", "--learning_rate", "1e-3", "--save_strategy", "no", "--dataloader_num_workers", "0"]
FSDP = ("--fsdp", "True", "--fsdp_config", "shell/fsdp/fsdp2_config.json")


class Way(NamedTuple):
    """How a training is divided."""

    processes: int = 1
    nodes: int = 1
    flags: tuple[str, ...] = ()
    deepspeed: str = "none"


def make_ways(counts: list[int]) -> dict[str, Way]:
    """Return name → way. Without GPUs there is no FSDP2: accelerate keeps it for them."""
    ways = {}
    for processes in counts:
        ways[f"{processes} × DDP"] = Way(processes)
        for stage in (1, 2, 3):
            config = f"shell/deepspeed/zero_stage{stage}_config.json"
            ways[f"{processes} × ZeRO-{stage}"] = Way(processes, deepspeed=config)
    if detect_device()[0] == "cuda":
        ways["2 × FSDP2"] = Way(2, flags=FSDP)
    ways["2 nodes × 1"] = Way(nodes=2)
    ways["2 nodes × 2, ZeRO-1"] = Way(2, nodes=2, deepspeed="shell/deepspeed/zero_stage1_config.json")
    return ways


def train(name: str, way: Way, folder: Path, base: str, steps: int) -> dict:
    """Train in one way; returns its losses and times.

    Raises:
        UserError: it failed; its last lines are in the message.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "MODEL": base, "OUTPUT_DIR": str(folder), "GPUS": str(way.processes), "NNODES": str(way.nodes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "BATCH_SIZE": str(ROWS), "OMP_NUM_THREADS": "1",
        "PER_DEVICE_BATCH_SIZE": str(ROWS // way.processes // way.nodes), "DEEPSPEED": way.deepspeed,
    }  # fmt: skip
    command = ["bash", LORA, *FLAGS, "--max_steps", str(steps), *way.flags]
    with ThreadPoolExecutor() as pool:
        nodes = [
            pool.submit(run_logged, name, command, folder.with_suffix(f".{rank}.log"), **settings, NODE_RANK=str(rank))
            for rank in range(way.nodes)
        ]
        seconds = max(node.result().seconds for node in nodes)
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    trained = next(entry for entry in reversed(history) if "train_runtime" in entry)
    return {
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "training_seconds": trained["train_runtime"],
        "seconds": round(seconds, 1),
    }


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="pretrained/InternVL2-Tiny", help="checkpoint to start from")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="default %(default)s")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps (default %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args(argv)
    figures: dict[str, dict] = {}
    table = Table(title=f"{args.steps} steps of {ROWS} rows")
    for column in ("way", "last loss", "largest difference", "seconds of training"):
        table.add_column(column, justify="left" if column == "way" else "right")
    with tempfile.TemporaryDirectory() as temporary:
        for number, (name, way) in enumerate(make_ways(args.processes).items()):
            own = train(name, way, Path(temporary) / str(number), args.base, args.steps)
            first = next(iter(figures.values()), own)
            own["difference"] = max(abs(a - b) for a, b in zip(own["losses"], first["losses"], strict=True))
            figures[name] = own
            print(f"{name}: difference {own['difference']:.1e}, {own['training_seconds']:.1f} s", flush=True)
            table.add_row(
                name, f"{own['losses'][-1]:.5f}", f"{own['difference']:.1e}", f"{own['training_seconds']:.1f}"
            )
    Console().print(table)
    if args.json:
        write_json(args.json, figures)
    worst = max(figures, key=lambda name: figures[name]["difference"])
    if figures[worst]["difference"] > TOLERANCE:
        raise UserError(
            f"{worst}: its losses differ by {figures[worst]['difference']:.1e}, more than {TOLERANCE:.0e}."
        )


if __name__ == "__main__":
    main()
