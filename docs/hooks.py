"""Hooks of mkdocs: pages and images outside docs/ join the site, and relative links are those of the repository.

So the same files read well on a Git host and on the site. A link to a file that is not a page (a source file, say)
becomes its text.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[1]
OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "eval/caption/README.md",
    "internvl/data/README.md",
    "tests/README.md",
)
# The start page stands for the README, which Git hosts show in its place.
SAME_PAGE = {"README.md": "index.md"}
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)|!\[(?P<alt>[^\]]*)\]\((?P<image>[^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside docs/."""
    for name in OUTSIDE:
        files.append(File.generated(config, name, abs_src_path=str(REPOSITORY / name)))
    for image in sorted((REPOSITORY / "assets").iterdir()):
        files.append(File.generated(config, f"assets/{image.name}", abs_src_path=str(image)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite relative links from where files lie in the repository to where they are on the site."""
    here = page.file.src_uri
    in_repository = here if here in OUTSIDE else f"docs/{here}"

    def rewrite(link: re.Match) -> str:
        path, hash_mark, anchor = (link["target"] or link["image"]).partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return link[0]
        found = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository), path))
        if not (REPOSITORY / found).exists():
            return link[0]  # for the strict build to report
        on_site = SAME_PAGE.get(found, found.removeprefix("docs/"))
        if files.get_file_from_path(on_site) is None:
            return link["text"]
        new = posixpath.relpath(on_site, posixpath.dirname(here) or ".")
        if found in SAME_PAGE:
            hash_mark = anchor = ""
        return f"![{link['alt']}]({new})" if link["image"] else f"[{link['text']}]({new}{hash_mark}{anchor})"

    return LINK.sub(rewrite, markdown)
