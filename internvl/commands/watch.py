"""Show the runs of a folder side by side: the pages that trainings keep of themselves, in one that reloads them.

    python tools/watch.py log
    python tools/watch.py log work_dirs --out runs.html

Writes ``watch.html`` into the first folder, newest run first, and prints its path; open it in a browser. Needs no
server: every training keeps its ``run.html`` up to date. Run it again when there are new runs.
"""

import argparse
import os
import time
from html import escape
from pathlib import Path

from internvl.cli import Parser
from internvl.errors import UserError, ends_on_user_error
from internvl.train.run_page import PAGE

OUT = "watch.html"
STYLE = """
:root { color-scheme: light dark; }
body { margin: 0; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0 0 1rem; font-size: 1.3rem; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem; }
h2 { margin: 0 0 0.3rem; font-size: 0.95rem; }
iframe { width: 100%; height: 46rem; border: 1px solid #8884; border-radius: 8px; }
"""


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="where output folders of trainings are"
    )
    parser.add_argument("--out", type=Path, help=f"file to write (default: {OUT} in the first folder)")
    parser.add_argument("--most", type=int, default=12, help="runs shown, the newest ones (default %(default)s)")
    return parser


def find_pages(folders: list[Path]) -> list[Path]:
    """Return the pages of all runs below ``folders``, the one written last first.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder. Name the folder of your trainings, such as log.")
    pages = {page.resolve() for folder in folders for page in folder.rglob(PAGE)}
    if not pages:
        raise UserError(f"{folders[0]}: holds no {PAGE}, which a training writes as it starts. Name another folder.")
    return sorted(pages, key=lambda page: -page.stat().st_mtime)


def render(pages: list[Path], out: Path, total: int) -> str:
    """Return a page with a frame for each of ``pages``, by paths that hold from where ``out`` is."""
    frames = []
    for page in pages:
        link = escape(Path(os.path.relpath(page, out.parent)).as_posix())
        name = escape(page.parent.name)
        frames.append(
            f'<section><h2><a href="{link}">{name}</a></h2><iframe src="{link}" title="Run {name}"></iframe></section>'
        )
    shown = f"{len(pages)} of {total} runs" if total > len(pages) else f"{total} run{'s' if total != 1 else ''}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{shown}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{shown}, found {time.strftime('%Y-%m-%d %H:%M')}</h1>\n<main>\n{chr(10).join(frames)}\n</main>\n"
        "</body>\n</html>\n"
    )


@ends_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if args.most < 1:
        raise UserError(f"--most: is {args.most}. Give a whole number from 1.")
    pages = find_pages(args.folders)
    out = (args.out or args.folders[0] / OUT).resolve()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(render(pages[: args.most], out, len(pages)), encoding="utf-8")
    except OSError as err:
        raise UserError(f"{out}: cannot be written ({err.strerror}). Name another file with --out.") from err
    print(out)
