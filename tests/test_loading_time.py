"""What is read of a checkpoint: its file once a process, unless it changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from evalkit.checkpoints import tensors
from evalkit.checkpoints.fitting import _are_finite
from evalkit.checkpoints.tensors import file_hash


@pytest.fixture(autouse=True)
def _no_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "_HASHES", {})


def test_a_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    monkeypatch.setattr(tensors, "_TICK_NS", -(10**12))  # its ctime is of now, all the same
    first = file_hash(path)
    monkeypatch.setattr(tensors.hashlib, "sha256", None)
    assert file_hash(path) == first


def test_a_file_that_changes_is_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    monkeypatch.setattr(tensors, "_TICK_NS", -(10**12))
    first = file_hash(path)
    path.write_bytes(b"another")
    other = file_hash(path)
    assert other != first
    (tmp_path / "new").write_bytes(b"one")
    (tmp_path / "new").replace(path)
    assert file_hash(path) == first


def test_a_file_of_the_last_seconds_is_hashed_every_time(tmp_path: Path) -> None:
    """It may be written again without a time that tells."""
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = file_hash(path)
    assert not tensors._HASHES
    stamp = path.stat().st_mtime_ns
    path.write_bytes(b"two")
    os.utime(path, ns=(stamp, stamp))
    assert file_hash(path) != first


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
)
@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_seen(dtype: torch.dtype, value: float) -> None:
    values = torch.linspace(-1, 1, 999).to(dtype)
    values[500] = value
    assert _are_finite(values) == (value == 0.5 and dtype != torch.complex64)  # counted there
    assert _are_finite(values[:0])
