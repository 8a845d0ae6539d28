"""What ``torchrun_finetune`` of shell/lib/launch.sh calls, twice: to check what costs nothing, then to train.

    python -m internvl.launch check|run SCRIPT [RECIPE FLAG VALUE]... -- [USER'S FLAG]...

Settings come from the environment, those in :data:`SETTINGS`.
"""

import os
import sys
from pathlib import Path

from internvl.errors import UserError
from internvl.launch.inputs import check_meta_inputs, check_model_and_meta
from internvl.launch.plan import CPU, check_gpus, detect_device, make_plan, uses_cpu
from internvl.launch.process import run_logged
from internvl.launch.settings import check_nodes, divide_batch, is_on, read_settings
from internvl.repository import REPOSITORY

SETTINGS = """
    GPUS NNODES NODE_RANK MASTER_ADDR MASTER_PORT BATCH_SIZE PER_DEVICE_BATCH_SIZE MODEL META_PATH OUTPUT_DIR DEEPSPEED
    PRECISION DRY_RUN SHUTDOWN_SECONDS
""".split()
DEFAULTS = {"NNODES": "1", "NODE_RANK": "0", "PRECISION": "auto"}


def launch(step: str, script: str, recipe: list[str], flags: list[str]) -> int:
    """Check the settings, and with ``step`` "run" train as they say; returns the exit status of the training.

    Raises:
        UserError: the settings, the files they name or the device do not fit.
    """
    # An empty setting is one that is not set, but for DEEPSPEED: empty is none.
    given = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    environment = DEFAULTS | {name: value for name, value in given.items() if value or name == "DEEPSPEED"}
    settings = read_settings(environment, flags, Path(os.environ.get("INVOKED_FROM", ".")), REPOSITORY)
    batch = divide_batch(settings)
    check_nodes(settings)
    dry_run = is_on(settings["DRY_RUN"])
    if not dry_run:
        check_model_and_meta(settings)
    if step == "check":
        return 0
    device = CPU if uses_cpu(settings) else detect_device(dry_run)
    if not dry_run:
        check_gpus(batch, device)
    plan = make_plan(settings, batch, device, script, recipe)
    if dry_run:
        print(*plan.describe(REPOSITORY), sep="\n")
        return 0
    check_meta_inputs(settings["META_PATH"], REPOSITORY)
    log = Path(settings["OUTPUT_DIR"]) / "training_log.txt"
    head = f"{batch}\n{plan.command_lines(REPOSITORY)}\n"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(head)
    except OSError as err:
        raise UserError(
            f"{log.parent}: cannot be written ({err.strerror}). Set OUTPUT_DIR to a folder where you may write."
        ) from err
    print(head, end="", flush=True)
    return run_logged(plan.command, log)


def main() -> int:
    step, script, *words = sys.argv[1:]
    end = words.index("--")
    try:
        return launch(step, script, words[:end], words[end + 1 :])
    except UserError as err:
        print(err, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
