"""Command line of the conformance runner; see ``tests/reference/runner.py`` for what a line means."""

import argparse
import json
import sys
from pathlib import Path

import torch

from tests.reference.runner import FAMILIES, Report, run_families


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.reference", description="Compare this project with golden values of the original."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of golden values (its README says what)")
    parser.add_argument("--only", metavar="FAMILY[,FAMILY]", help=f"of {', '.join(FAMILIES)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every case to this file too")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FOLDER", help="published tokenizer files (default: DIR/../internvl2_2b)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the families, print the report, and return the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if not args.folder.is_dir():
        sys.stderr.write(f"error: {args.folder}: there is no such folder of golden values. Correct the path.\n")
        return 2
    names = args.only.split(",") if args.only else list(FAMILIES)
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        parser.error(f"--only: {unknown[0]!r} is not a family. Use {', '.join(FAMILIES)}.")
    torch.manual_seed(0)
    report = Report(on_line=lambda line: print(line, flush=True))
    run_families(report, args.folder, names, args.tokenizer or args.folder.parent / "internvl2_2b")
    print("\n".join(report.summary()))
    if args.json:
        args.json.write_text(json.dumps(report.as_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
