"""What a pickle declares is checked before it is read: sizes, and numbers that are not there."""

from __future__ import annotations

import io
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evalkit.checkpoints.tensors import read_tensor_file
from tests.support.folders import model, save, sentence

STATE = model().state_dict()
MEBIBYTES_ALLOWED = 100


class Bytes:
    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (6_000_000_000,)


class Floats:
    def __reduce__(self) -> tuple[Any, ...]:
        return torch.FloatTensor, (1_500_000_000,)


def repeated(path: Path) -> None:
    torch.save({**STATE, "x": torch.zeros(1).expand(1_500_000_000)}, path)


def repeated_beside(path: Path) -> None:
    torch.save({"state_dict": STATE, "x": torch.zeros(1).expand(1_500_000_000)}, path)


def bytes_beside(path: Path) -> None:
    torch.save({"state_dict": STATE, "x": Bytes()}, path)


def floats_beside(path: Path) -> None:
    torch.save({"state_dict": STATE, "x": Floats()}, path)


def deflated(path: Path, size: int = 100_000_000) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts({**STATE, "x": torch.zeros(4)}).items():
            archive.writestr(name, content)
        with archive.open("archive/data/9", "w") as entry:
            for _ in range(size // 1_000_000):
                entry.write(bytes(1_000_000))


def large_legacy_storage(path: Path) -> None:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert b"K\x0cNt" in content  # the twelve numbers of the first weight
    path.write_bytes(content.replace(b"K\x0cNt", b"J\x00\x00\x00\x70Nt", 1))


def parts(content: Any) -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


@pytest.mark.parametrize(
    "write",
    [repeated, repeated_beside, bytes_beside, floats_beside, deflated, large_legacy_storage],
)
def test_a_small_file_takes_little_memory(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "step-1.pt"
    write(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = sentence(lambda: read_tensor_file(path))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert used < MEBIBYTES_ALLOWED * 1024
    assert f"about as large as its tensors at '{path}'" in text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x0ctq", b"K\xfftq"),  # more numbers in the storage than in the file
        (b"K\x03K\x04\x86", b"K\x03K\x05\x86"),  # a tensor beyond its storage
    ],
)
def test_numbers_that_are_not_there(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = tmp_path / "step-1.pt"
    contents = parts(STATE)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            assert not name.endswith("data.pkl") or old in content
            archive.writestr(
                name, content.replace(old, new, 1) if name.endswith("data.pkl") else content
            )
    assert "truncated, altered" in sentence(lambda: read_tensor_file(path))


def test_what_people_save_is_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "step-1.pt"
    weights = torch.randn(64, 8)
    content = {
        "expanded": torch.arange(5.0).expand(3, 5),
        "part": weights[8:24],
        "transposed": weights.T,
        "parameter": torch.nn.Parameter(weights),
        "half": weights.bfloat16(),
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(2.5),
        "flags": torch.tensor([True, False]),
        "complex": weights[:2].to(torch.complex64),
    }
    for zipped in (True, False):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        found = read_tensor_file(path)
        assert found.keys() == content.keys()
        assert all(torch.equal(found[name], value) for name, value in content.items())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts(content).items():
            archive.writestr(name, part)
    assert torch.equal(read_tensor_file(path)["transposed"], weights.T)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors(tmp_path: Path, layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)
    path = save(tmp_path / "step-1.pt", {**STATE, "x": nested})
    assert f"'{path}'" in sentence(lambda: read_tensor_file(path))


def test_two_entries_of_one_name(tmp_path: Path) -> None:
    """Which of them is read would depend on the reader."""
    path = tmp_path / "step-1.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts(STATE).items():
            archive.writestr(name, content)
        archive.writestr("archive/DATA.pkl", b"")
    assert "truncated, altered" in sentence(lambda: read_tensor_file(path))
