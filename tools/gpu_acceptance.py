"""Check on a GPU what no test without one can show, in four stages of under ten minutes each.

    python tools/gpu_acceptance.py right     --out acceptance    # kernels, golden numbers, the tests marked gpu
    python tools/gpu_acceptance.py train     --out acceptance    # InternVL2-2B's shape: time, memory, kernels
    python tools/gpu_acceptance.py generate  --out acceptance    # answers of base, adapter, merged model, -hf copy
    python tools/gpu_acceptance.py compare   --out acceptance    # the benchmarks, and 4 bits
    python tools/gpu_acceptance.py right --rehearse              # the same checks at tiny size on the CPU

Every check runs in a process of its own with a time limit and writes a line to OUT/acceptance.json as it ends; one
that needs a package that is not installed is skipped. The 2B model has random weights. No network is needed. Ends
with status 1 when a check failed.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from acceptance import comparison, generation, right, training  # noqa: F401 - they register their checks
from acceptance.checks import CHECKS, STAGES, Setting
from acceptance.golden import write_golden
from acceptance.stages import of_stage, run_check, run_stage, this_program
from rich.console import Console

from internvl.cli import Parser
from internvl.errors import UserError, ends_on_user_error

GOLDEN = "golden"


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "stage", choices=[*STAGES, GOLDEN], help=f"{GOLDEN}: write the golden numbers anew, on the CPU, nothing else"
    )
    parser.add_argument("--out", type=Path, default=Path("acceptance"), help="folder of results (default %(default)s)")
    parser.add_argument("--work", type=Path, help="folder of checkpoints, kept for other stages (default: OUT/work)")
    parser.add_argument("--only", nargs="+", default=[], metavar="CHECK", help="these checks of the stage alone")
    parser.add_argument("--rehearse", action="store_true", help="at tiny size on the CPU")
    parser.add_argument("--check", help=argparse.SUPPRESS)
    parser.add_argument("--figures", type=Path, help=argparse.SUPPRESS)
    return parser


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    work = (args.work or args.out / "work").resolve()
    work.mkdir(parents=True, exist_ok=True)
    setting = Setting(work, args.rehearse)
    if args.check:
        sys.exit(run_check(args.check, setting, args.figures))
    if args.stage == GOLDEN:
        with tempfile.TemporaryDirectory() as folder:
            write_golden(Path(folder))
        return
    names = [check.name for check in of_stage(args.stage, [])]
    if unknown := set(args.only) - set(names):
        raise UserError(f"--only: {args.stage} has no check {min(unknown)!r}. Use some of {', '.join(names)}.")
    if not args.rehearse and not torch.cuda.is_available():
        raise UserError("There is no GPU here. Run it on a machine with one, or pass --rehearse.")
    console, failed = Console(highlight=False, soft_wrap=True), 0
    for result in run_stage(of_stage(args.stage, args.only), setting, args.out, this_program()):
        failed += result["ok"] is False
        word = {True: "ok", False: "FAILED", None: "skipped"}[result["ok"]]
        what = (CHECKS[result["name"]].run.__doc__ or "").splitlines()[0]
        console.print(f"{word:8}{result['name']} ({result['seconds']:.0f} s): {what}", markup=False)
        if result["ok"] is not True:
            console.print(f"        {result['reason']}", markup=False)
    console.print(f"{args.out / 'acceptance.json'} has the figures.", markup=False)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
