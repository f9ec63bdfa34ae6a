"""Small models saved as folders of checkpoints, for the tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from evalkit.checkpoints import open_trajectory, verify_trajectory
from evalkit.checkpoints.manifest import MANIFEST_NAME
from evalkit.checkpoints.tensors import file_hash
from evalkit.errors import EvalkitError

BUNDLED = Path(__file__).parents[2] / "checkpoints" / "digits-mlp"


def model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


STATE = model(3).state_dict()


def under(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    """A state with a prefix before every name."""
    return {f"{prefix}{name}": value for name, value in state.items()}


def values(module: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in module.state_dict().values()])


def save(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


def with_manifest(folder: Path, **changes: Any) -> dict[str, Any]:
    """Write three checkpoints and a manifest; ``changes`` replace its top-level fields."""
    entries = []
    for step in (0, 5, 10):
        path = save(folder / f"step-{step}.safetensors", model(step).state_dict())
        entries.append(
            {"file": path.name, "step": step, "progress": step / 10, "sha256": file_hash(path)}
        )
    manifest = {"format": 1, "task": "digits-mlp", "checkpoints": entries, **changes}
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    return manifest


def sentence(action: Callable[[], Any]) -> str:
    with pytest.raises(EvalkitError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text


def refused(folder: Path) -> str:
    """The sentence with which a folder is refused before the first score."""
    return sentence(lambda: verify_trajectory(open_trajectory(folder), model()))
