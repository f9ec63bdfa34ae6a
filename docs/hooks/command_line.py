"""The reference of the command line, of what click knows of each command."""

from __future__ import annotations

import inspect
import re

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from evalkit.cli.main import commands

MARK = "<!-- commands -->"
"""Where a page wants them."""


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the commands where the page wants them."""
    return markdown.replace(MARK, reference()) if MARK in markdown else markdown


def reference() -> str:
    """Return a section for each command, in the order of ``evalkit --help``."""
    group = click.Context(commands, info_name="evalkit")
    sections = []
    for name in commands.list_commands(group):
        command = commands.get_command(group, name)
        assert command is not None
        sections.append(section(command, click.Context(command, info_name=name, parent=group)))
    return "\n\n".join(sections)


def section(command: click.Command, context: click.Context) -> str:
    """Return what is said of one command: its help, its use, its options and its examples."""
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"## evalkit {context.info_name}", paragraphs(command.help or ""), code(usage)]
    records = [option.get_help_record(context) for option in command.get_params(context)]
    rows = [f"| `{names}` | {cell(text)} |" for names, text in filter(None, records)]
    parts.append("\n".join(["| option | |", "|---|---|", *rows]))
    if command.epilog:
        parts.append(code(inspect.cleandoc(command.epilog.replace("\b", "")).strip()))
    return "\n\n".join(parts)


def paragraphs(text: str) -> str:
    """Return the paragraphs of a help text, each on a line of its own."""
    return "\n\n".join(
        code(part.replace("\b\n", "")) if part.startswith("\b") else " ".join(part.split())
        for part in re.split(r"\n\s*\n", inspect.cleandoc(text))
    )


def code(text: str) -> str:
    return f"```text\n{text}\n```"


def cell(text: str) -> str:
    """Return a text as it can stand in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
