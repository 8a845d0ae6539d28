"""An evaluation as evaluate.sh starts it: one process, or one per device with GPUS=N."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from internvl.errors import UserError
from internvl.launch.batch import check_positive
from internvl.launch.command import command_lines, detect_device, prepare_device, torchrun
from internvl.launch.flags import Paths, is_on, make_parser, read_flags
from internvl.launch.settings import Nodes, read_nodes

INPUT_PATHS = ("annotation", "root", "meta", "compare", "base")
OUTPUT_PATHS = ("out-dir", "vision-cache")


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation is asked for; ``arguments`` are the script's. Paths are right from the repository."""

    checkpoint: str
    script: str
    arguments: list[str]
    gpus: int
    auto: bool
    nodes: Nodes
    dry_run: bool


def read(call: Sequence[str], typed: Sequence[str]) -> Evaluation:
    """Return what evaluate.sh and its user ask for, checked as far as that costs nothing.

    Args:
        call: ``SCRIPT FLAG VALUE...``, the task's script and its own flags.
        typed: the checkpoint, and the user's flags.

    Raises:
        UserError: GPUS is not a number, the checkpoint is not there, or a flag comes without its value.
    """
    script, *arguments = call
    paths = Paths()
    parser = make_parser(INPUT_PATHS + OUTPUT_PATHS)
    parser.add_argument("--auto", action="store_true")
    given, passed_on = read_flags(parser, typed[1:])
    auto = given.pop("auto", False)
    for flag in INPUT_PATHS + OUTPUT_PATHS:
        if value := given.get(flag.replace("-", "_")):
            arguments += [f"--{flag}", paths.input(value) if flag in INPUT_PATHS else paths.output(value)]
    evaluation = Evaluation(
        paths.input(typed[0]),
        script,
        [*arguments, *(["--auto"] if auto else []), *passed_on],
        check_positive("GPUS", os.environ.get("GPUS") or "1"),
        bool(auto),
        read_nodes(1, {"MASTER_PORT": os.environ.get("MASTER_PORT", "")}),
        is_on(os.environ.get("DRY_RUN")),
    )
    if not evaluation.dry_run and not Path(evaluation.checkpoint).is_dir():
        raise UserError(
            f"{evaluation.checkpoint}: there is no such folder. Give the folder of a checkpoint; "
            '"bash tools/download_pretrained.sh" gets InternVL2-2B, and pretrained/InternVL2-Tiny is shipped.'
        )
    return evaluation


def start(evaluation: Evaluation) -> int:
    """Become the evaluation, or say what would be done where it is a dry run.

    Raises:
        UserError: there are fewer GPUs than asked for.
    """
    command = [sys.executable]
    if evaluation.gpus > 1 and evaluation.auto:
        print(f"GPUS={evaluation.gpus} is not used: --auto runs one process.", file=sys.stderr)
    elif evaluation.gpus > 1:
        prepare_device(detect_device(evaluation.dry_run), evaluation.gpus, evaluation.dry_run)
        command = torchrun(evaluation.gpus, evaluation.nodes)
    command += [evaluation.script, "--checkpoint", evaluation.checkpoint, *evaluation.arguments]
    if not evaluation.dry_run:
        os.execv(command[0], command)  # does not come back
    missing = "" if Path(evaluation.checkpoint).is_dir() else " (missing)"
    print(f"Dry run: nothing is started and nothing is written.\nCheckpoint: {evaluation.checkpoint}{missing}\n")
    print(f"The command:\n{command_lines(command)}")
    return 0
