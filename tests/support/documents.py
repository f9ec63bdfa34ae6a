"""The text of the documents, and the files in it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

README = (ROOT / "README.md").read_text(encoding="utf-8")


def python_files(text: str) -> dict[str, str]:
    """Return the files that a document shows, by name: Python blocks that begin with it."""
    blocks = re.finditer(r"```python\n# (\w+\.py)\n(.*?)```", text, re.DOTALL)
    return {match.group(1): match.group(2) for match in blocks}


def document(name: str) -> str:
    """Return a page of the documentation."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


FILES = python_files(README)
"""The files of the README."""
