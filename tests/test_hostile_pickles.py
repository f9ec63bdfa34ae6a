"""Pickles and archives that nobody saves: refused before torch reads them, in one sentence."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import pytest
import torch

from evalkit.checkpoints.tensors import read_tensor_file
from evalkit.training.states import read_state
from tests.fuzz import archives, guards
from tests.support.folders import model, sentence

STATE = model().state_dict()
DAMAGED = "truncated, altered"
X = b"X\x01\x00\x00\x00x"  # the text x


def archive_with(more: bytes, value: bytes = b"K\x01") -> list[tuple[str, bytes]]:
    """The entries of a saved state with one entry more, whose name is what instructions make."""
    made = io.BytesIO()
    torch.save(STATE, made)
    parts = dict(archives.entries(made.getvalue()))
    name = next(name for name in parts if name.endswith("data.pkl"))
    content = parts[name]
    parts[name] = content[:-1] + more + value + b"s."
    return list(parts.items())


def read_quickly(path: Path) -> str:
    before = guards.forget_peak()
    with guards.watched(path.parent, seconds=30) as watch:
        said = sentence(lambda: read_tensor_file(path))
    assert watch.offences == []
    assert guards.peak() - before < 100 * 2**20
    return said


REPEATED = {
    "a tuple twice at every level, as a name": archives.doubled(60),
    "a list twice at every level": X + archives.listed(60),
    "a list that holds itself": X + b"]r\x05\x00\x00\x00j\x05\x00\x00\x00a",
    "a dict that holds itself": X + b"}r\x06\x00\x00\x00K\x01j\x06\x00\x00\x00s",
    "levels without end": X + b"]" * 300 + b"a" * 299,
    "a name of a tuple": archives.doubled(60) + archives.doubled(60) + b"\x93",
    "a storage of a tuple": b"(X\x07\x00\x00\x00storage"
    + b"ctorch\nFloatStorage\n"
    + archives.doubled(60)
    + b"X\x03\x00\x00\x00cpuK\x01tQ",
    "numbers of 255 bytes as sizes": b"ctorch._utils\n_rebuild_tensor_v2\n(h\x00K\x00("
    + b"\x8a\xff" + b"\xff" * 254 + b"\x7f"
    + b"tK\x01\x85\x89NtR",
}  # fmt: skip


@pytest.mark.parametrize("kind", REPEATED)
def test_what_would_take_for_ever(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "step-1.pt"
    is_value = kind.startswith(("a list", "a dict", "levels"))
    parts = archive_with(REPEATED[kind], b"" if is_value else b"K\x01")
    path.write_bytes(archives.packed(parts))
    assert DAMAGED in read_quickly(path)


def test_the_state_of_a_training_is_read_as_weights_are(tmp_path: Path) -> None:
    path = tmp_path / "step-1.optimizer.pt"
    path.write_bytes(archives.packed(archive_with(archives.doubled(60))))
    with guards.watched(tmp_path, seconds=30):
        assert DAMAGED in sentence(lambda: read_state(path))
    torch.save({**STATE, "x": torch.zeros(1).expand(1_500_000_000)}, path)
    assert "about as large as its tensors" in sentence(lambda: read_state(path))


def test_many_containers_of_a_byte_each(tmp_path: Path) -> None:
    path = tmp_path / "step-1.pt"
    parts = archive_with(b"](" + b"]" * 3_000_000 + b"e", b"")
    path.write_bytes(archives.packed(parts, zipfile.ZIP_DEFLATED))
    assert "about as large as its tensors" in read_quickly(path)
    path.write_bytes(b"\x80\x02](" + b"]" * 400_000 + b"e.")
    assert DAMAGED in read_quickly(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_within_what_is_compressed(method: int, tmp_path: Path) -> None:
    path = tmp_path / "step-1.pt"
    whole = archives.packed(archive_with(X), method)
    for place in range(40, 400, 9):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        assert str(path) in sentence(lambda: read_tensor_file(path))


def test_an_archive_inside_of_another_file(tmp_path: Path) -> None:
    """Torch and the check of sizes could take another of the two."""
    path = tmp_path / "step-1.pt"
    made = io.BytesIO()
    torch.save(STATE, made)
    path.write_bytes(b"PK\x03\x04" + bytes(96) + made.getvalue())
    assert DAMAGED in sentence(lambda: read_tensor_file(path))
    path.write_bytes(made.getvalue()[:-2] + b"\x04\x00more")
    assert DAMAGED in sentence(lambda: read_tensor_file(path))


def test_what_is_shared_by_intention_is_read(tmp_path: Path) -> None:
    """Objects of libraries may hold themselves; weights may stand under several names."""
    path = tmp_path / "step-1.pt"
    betas, numbers = (0.9, 0.999), [random.random() for _ in range(100)]
    groups = [{"betas": betas, "params": numbers} for _ in range(300)]
    content = {"state_dict": STATE, "groups": groups, "again": groups, "pairs": [[1, 2]] * 2000}
    torch.save({**content, "lists": [[i, i] for i in range(34_000)]}, path)  # each with a mark
    found = read_tensor_file(path)
    assert all(torch.equal(found[name], value) for name, value in STATE.items())
