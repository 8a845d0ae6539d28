"""Time tools/convert_annotations.py on generated LLaVA rows, as a JSON array and as JSON lines, with its peak memory.

python benchmarks/convert_annotations.py --rows 1000000 --json convert_annotations.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import run_measured

from internvl.errors import ends_on_user_error
from internvl.json_files import write_json

TOOL = Path(__file__).resolve().parents[1] / "tools" / "convert_annotations.py"


def write_rows(file: Path, num_rows: int, *, array: bool) -> None:
    """Write rows of one image and one question, about 250 bytes each."""
    with open(file, "w", encoding="utf-8") as stream:
        stream.write("[\n" if array else "")
        for number in range(num_rows):
            turns = [
                {"from": "human", "value": "<image>\nProvide a one-sentence caption for the provided image."},
                {"from": "gpt", "value": f"A person rides bicycle number {number} along a street with trees."},
            ]
            row = {"id": number, "image": f"images/{number:012d}.jpg", "conversations": turns}
            stream.write(json.dumps(row) + (",\n" if array and number < num_rows - 1 else "\n"))
        stream.write("]\n" if array else "")


def measure(source: Path, out: Path) -> dict:
    """Convert a file in a process of its own."""
    command = [sys.executable, TOOL, source, out, "--from", "llava"]
    measured = run_measured(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open(out, "rb") as stream:
        rows = sum(1 for _ in stream)
    return {
        "rows": rows,
        "seconds": measured.seconds,
        "rows_per_second": rows / measured.seconds,
        "peak_mib": measured.peak_mib,
    }


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="default %(default)s")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args(argv)
    figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        for form in ("array", "lines"):
            source = Path(temporary) / f"{form}.json"
            write_rows(source, args.rows, array=form == "array")
            figures[form] = found = measure(source, Path(temporary) / f"{form}.jsonl")
            speed = f"{found['seconds']:.1f} s, {found['rows_per_second']:,.0f} rows/s"
            print(f"{form:<6} {found['rows']:,} rows: {speed}, peak {found['peak_mib']:,.0f} MiB")
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    main()
