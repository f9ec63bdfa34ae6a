"""The text of the documents, and the files in it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

README = (ROOT / "README.md").read_text(encoding="utf-8")

FILES = {
    match.group(1): match.group(2)
    for match in re.finditer(r"```python\n# (\w+\.py)\n(.*?)```", README, re.DOTALL)
}
