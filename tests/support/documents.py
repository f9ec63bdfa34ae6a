"""The text of the documents: the files in it, its blocks of code, its headings and its links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
)
"""What is written by hand and read by people, by its place in the repository."""
_FENCED = re.compile(
    r"(?:^<!-- (?P<kind>given|not run): ?(?P<said>.*?)-->\n\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_INDENTED = re.compile(r"(?<=\n\n)(?:(?: {4}.*)?\n)+", re.MULTILINE)
_SHELL = ("", "bash", "console", "sh", "shell", "text")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A block of Python.

    Attributes:
        text: what it says.
        given: what its reader has already, run before it.
        not_run: why it cannot run, empty where it can.
    """

    text: str
    given: str = ""
    not_run: str = ""

    @property
    def file(self) -> str:
        """The file that it shows, empty where it shows none."""
        found = re.match(r"# (\w+\.py)\n", self.text)
        return found[1] if found else ""


def page(path: str) -> str:
    """Return the text of a page by its place in the repository."""
    return (ROOT / path).read_text(encoding="utf-8")


def document(name: str) -> str:
    """Return a page of the documentation."""
    return page(f"docs/{name}")


def python_blocks(text: str) -> list[Block]:
    """Return the fenced blocks of Python of a page."""
    found = [match for match in _FENCED.finditer(text) if match["language"] == "python"]
    return [
        Block(
            match["text"],
            given=match["said"].strip() + "\n" if match["kind"] == "given" else "",
            not_run=match["said"].strip() if match["kind"] == "not run" else "",
        )
        for match in found
    ]


def python_files(text: str) -> dict[str, str]:
    """Return the files that a document shows, by name: Python blocks that begin with it."""
    blocks = re.finditer(r"```python\n# (\w+\.py)\n(.*?)```", text, re.DOTALL)
    return {match.group(1): match.group(2) for match in blocks}


def indented(text: str) -> list[str]:
    """Return the indented blocks of a page, what is inside of fences left out."""
    bare = _FENCED.sub("", text)
    return [found for match in _INDENTED.finditer(bare) if (found := match[0]).strip()]


def command_lines(text: str) -> list[list[str]]:
    """Return the words of each line of the blocks that are no Python, comments left out."""
    fenced = [match["text"] for match in _FENCED.finditer(text) if match["language"] in _SHELL]
    blocks = [*indented(text), *fenced]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := _words(line))]


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line.removeprefix("$ "), comments=True)
    except ValueError:  # output of a command, not one
        return []


def prose(text: str) -> str:
    """Return a page without its blocks of code and its comments."""
    bare = re.sub(r"<!--.*?-->", "", _FENCED.sub("", text), flags=re.DOTALL)
    return _INDENTED.sub("\n", bare)


def links(text: str) -> Iterator[str]:
    """Yield the links of a page that lead to files and headings, those to the web left out."""
    for match in _LINK.finditer(_FENCED.sub("", text)):
        if "://" not in match[1]:
            yield match[1]


def anchors(text: str) -> set[str]:
    """Return what the headings of a page are called in links, as GitHub and the site do."""
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", text), re.MULTILINE)
    bare = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in bare}


FILES = python_files(README)
"""The files of the README."""
