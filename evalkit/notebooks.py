"""What notebooks show of a result: a small table of facts, in place of the address of an object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape


def facts_html(title: str, facts: Mapping[str, object]) -> str:
    """Return a table of names and values, as HTML.

    Args:
        title: what it is of.
        facts: numbers are shown with four digits; empty ones and None are left out.
    """
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th>'
        f'<td style="text-align:left">{escape(_text(value))}</td></tr>'
        for name, value in facts.items()
        if value is not None and value != ""
    )
    return f"<table><caption>{escape(title)}</caption><tbody>{rows}</tbody></table>"


def table_html(
    title: str, names: Iterable[str], rows: Iterable[Iterable[str]], notes: Iterable[str] = ()
) -> str:
    """Return a table of texts with sentences below it, as HTML.

    Args:
        title: what it is of.
        names: of the columns.
        rows: a text for each column.
        notes: the sentences.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in rows
    )
    said = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        f"<table><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>{said}"
    )


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return str(value)
