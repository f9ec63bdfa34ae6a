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
    """Put the methods where the page wants them."""
    return markdown.replace(MARK, sections()) if MARK in markdown else markdown


def sections() -> str:
    """Return a section for each method: its names, its family, what it is, and its settings."""
    parts = []
    for name in methods():
        function = registered(name)
        settings = [
            f"`{key}={_text(parameter.default)}`"
            for key, parameter in inspect.signature(function).parameters.items()
            if key not in GIVEN
        ]
        said = (inspect.getdoc(function) or "").split("\n\n")[0]
        first = " ".join(said.split()).replace("``", "`").replace("*", "\\*")
        parts += [f"### `{name}`", f"{first} Figures call it {display_name(name)}, {family(name)}."]
        if settings:
            parts.append(f"Settings and their defaults: {', '.join(settings)}.")
    return "\n\n".join(parts)


def _text(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)
