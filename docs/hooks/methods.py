"""The reference of the methods: what is registered, with its settings."""

from __future__ import annotations

import inspect

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from evalkit.names import display_name, family
from evalkit.updates.registry import methods, registered

MARK = "<!-- methods -->"
"""Where a page wants them."""
GIVEN = ("lin", "damping", "seed", "on_iteration", "others", "past", "optimizer")
"""Parameters that are no settings: a score gives them."""


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the table of methods where the page wants it."""
    return markdown.replace(MARK, table()) if MARK in markdown else markdown


def table() -> str:
    """Return a row for each method: its names, its family, its settings, what it is."""
    rows = ["| name | in figures | family | settings and defaults | |", "|---|---|---|---|---|"]
    for name in methods():
        function = registered(name)
        settings = [
            f"`{key}={_text(parameter.default)}`"
            for key, parameter in inspect.signature(function).parameters.items()
            if key not in GIVEN
        ]
        said = inspect.getdoc(function) or ""
        first = " ".join(said.split("\n\n")[0].split()).replace("|", "\\|").replace("``", "`")
        cells = (f"`{name}`", display_name(name), family(name), ", ".join(settings), first)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _text(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)
