"""JSON objects in files that another program or a person may have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evalkit.errors import EvalkitError


def read_object(path: Path, advice: str = "copy or save the file again") -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        path: the file.
        advice: the end of an error sentence.

    Raises:
        EvalkitError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join((str(error) or type(error).__name__).split())
        raise EvalkitError(f"expected JSON in '{path}', found {reason}; {advice}") from error
    if not isinstance(content, dict):
        raise EvalkitError(
            f"expected a JSON object in '{path}', found {type(content).__name__}; {advice}"
        )
    return content
