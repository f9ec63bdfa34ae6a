"""What lies outside of docs/ on the site: README, CONTRIBUTING, reports, and links to all of them.

A page links to files as they lie in the repository, so that its links work there. On the site each
link leads to where the file is found, and a file that a page links to comes along.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = "docs/"
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "reports/accuracy.md": "results/accuracy.md",
    "reports/benchmarks.md": "results/benchmarks.md",
    "reports/benchmarks-gpu.md": "results/benchmarks-gpu.md",
}
"""Pages from outside of docs/, by their place in the repository: their place on the site."""
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
"""A relative link to a file: what is before its path, the path, and what follows."""


def place(path: str) -> str:
    """Return where a file of the repository lies on the site."""
    if path.startswith(DOCS):
        return path.removeprefix(DOCS)
    return PAGES.get(path, path)


def target(path: str, link: str) -> str:
    """Return the file of the repository that a link in another one leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def linked(path: str) -> Iterator[str]:
    """Yield the files of the repository that a page links to."""
    for match in LINK.finditer((ROOT / path).read_text(encoding="utf-8")):
        found = target(path, match[2])
        if (ROOT / found).is_file():
            yield found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside, and what any page links to."""
    waiting = [*PAGES, *(DOCS + file.src_uri for file in files.documentation_pages())]
    seen = set(waiting)
    for path in waiting:  # grows
        if not path.startswith(DOCS):
            listed = InclusionLevel.INCLUDED if path in PAGES else InclusionLevel.NOT_IN_NAV
            source = str(ROOT / path)
            file = File.generated(config, place(path), abs_src_path=source, inclusion=listed)
            files.append(file)
        if path.endswith(".md"):
            new = [found for found in linked(path) if found not in seen]
            waiting += new
            seen.update(new)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between files of the site."""
    source = Path(str(page.file.abs_src_path)).relative_to(ROOT).as_posix()
    here = posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        found = target(source, match[2])
        if not (ROOT / found).is_file():
            return match[0]  # the build warns
        return f"{match[1]}{posixpath.relpath(place(found), here or '.')}{match[3]}"

    return LINK.sub(moved, markdown)


ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):<code>~?([\w.]+)</code>")
"""A name in a docstring as Sphinx writes it, in HTML."""


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make the names in docstrings links, where the site has a place for them."""
    return ROLE.sub(r'<autoref identifier="\1" optional><code>\1</code></autoref>', html)
