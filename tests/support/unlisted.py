"""Trainings whose manifest does not list the hashes of their optimizers' states."""

from __future__ import annotations

import json
from pathlib import Path

from evalkit.checkpoints.manifest import MANIFEST_NAME, UNFINISHED_NAME


def unlist_states(folder: Path) -> None:
    """Take the hashes of the states out of what a training says of itself, as older ones are."""
    for path in (folder / MANIFEST_NAME, folder / UNFINISHED_NAME):
        if path.exists():
            manifest = json.loads(path.read_text())
            for entry in manifest["checkpoints"]:
                del entry["optimizer_sha256"]
            path.write_text(json.dumps(manifest))
