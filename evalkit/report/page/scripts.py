"""What a self-contained page carries: files and the chart library, compressed, and their hashes."""

from __future__ import annotations

import base64
import gzip
import hashlib

from bokeh import __version__ as BOKEH_VERSION
from bokeh.resources import Resources

__all__ = ["BOKEH_VERSION", "chart_library", "compressed", "script_hash"]


def chart_library() -> str:
    """Return BokehJS, its licence included, as one script."""
    scripts: list[str] = Resources(mode="inline", components=["bokeh"]).js_raw
    return scripts[0]


def compressed(content: bytes) -> str:
    """Return ``content`` gzipped, as base64; the same content gives the same text."""
    return base64.b64encode(gzip.compress(content, mtime=0)).decode("ascii")


def script_hash(script: str) -> str:
    """Return the source expression by which a content security policy allows one inline script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode('utf-8')).digest()).decode()}"
