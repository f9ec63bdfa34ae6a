"""What a pickle of tensors declares, read before anything is allocated.

The instructions are followed on symbols: no function is called, no class is made, no number of a
tensor is read. So the size of every storage and tensor is known, and compared with the file, before
torch reads it: a few bytes can otherwise declare gigabytes, or more numbers than there are.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from evalkit.errors import EvalkitError

MOST_UNFOLDED = 16
"""What a file may unfold to, compressed or by tensors that repeat numbers, in its own size..."""
ALWAYS_UNFOLDED = 16 * 2**20
"""...and in bytes, where that is more."""
_VIEWS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor")
_LEGACY_PICKLES = 5  # a magic number, the version, the system, the content, the storages' keys


class _Damaged(ValueError):
    """A pickle that ends early or is none; ``outline`` is that of its beginning."""

    def __init__(self, outline: Outline, error: Exception) -> None:
        super().__init__(str(error))
        self.outline = outline


@dataclass(frozen=True)
class _Name:
    """A function or class that a pickle refers to."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """A block of numbers: its key in the file, and how many bytes each and in all."""

    key: str
    item: int
    size: int


@dataclass(frozen=True)
class _Result:
    """What a call would return; ``size`` in bytes for a tensor, 0 for anything else."""

    size: int = 0


@dataclass
class Outline:
    """What a pickle declares.

    Attributes:
        names: functions and classes that it refers to, each once, in order.
        storages: bytes that each storage should have, by key.
        unfolded: bytes of all tensors when every number is written out.
        complaint: what makes the declared sizes impossible, None where nothing does.
    """

    names: dict[str, None] = field(default_factory=dict)
    storages: dict[str, int] = field(default_factory=dict)
    unfolded: int = 0
    complaint: str | None = None


def outline_of(path: Path) -> Outline:
    """Return what a file as ``torch.save`` writes it declares, its sizes checked against the file.

    Raises:
        ValueError: it is no such file, or damaged.
        EvalkitError: it declares more than it can hold.
        OSError: it cannot be read.
    """
    outline = _zip_outline(path) if _is_zip(path) else _legacy_outline(path)
    most = max(ALWAYS_UNFOLDED, MOST_UNFOLDED * path.stat().st_size)
    if outline.complaint is None and outline.unfolded > most:
        outline.complaint = (
            f"tensors of {_mebibytes(outline.unfolded)} in a file of "
            f"{_mebibytes(path.stat().st_size)}"
        )
    if outline.complaint is not None:
        raise _oversized(path, outline.complaint)
    return outline


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _zip_outline(path: Path) -> Outline:
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > max(ALWAYS_UNFOLDED, MOST_UNFOLDED * size):
                raise _oversized(path, f"{_mebibytes(unpacked)} compressed to {_mebibytes(size)}")
            sizes = {entry.filename.lower(): entry.file_size for entry in entries}
            if len(sizes) < len(entries):
                raise ValueError("two entries of one name")
            home = entries[0].filename.split("/")[0] if entries else ""
            if f"{home}/constants.pkl".lower() in sizes:
                return Outline()  # a TorchScript program, which torch refuses to read
            content = archive.read(f"{home}/data.pkl")
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"a damaged archive: {error}") from error
    outline, _ = _read(content, 0)
    for key, declared in outline.storages.items():
        there = sizes.get(f"{home}/data/{key}".lower())
        if there != declared:
            raise ValueError(f"storage {key} of {declared} bytes, {there} there")
    return outline


def _legacy_outline(path: Path) -> Outline:
    """Return the outline of a file as torch wrote it before version 1.6, or of a plain pickle."""
    size = path.stat().st_size
    if not size:
        raise ValueError("an empty file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        first, (_, end) = _read(content, 0)
        if first.names:
            return first  # a plain pickle, and no file of torch's
        for _ in range(_LEGACY_PICKLES - 3):
            _, (_, end) = _read(content, end)
        outline, (_, end) = _read(content, end)
        _, (keys, _) = _read(content, end)
    declared = sum(outline.storages.values())
    if declared > size:
        outline.complaint = f"storages of {_mebibytes(declared)} in a file of {_mebibytes(size)}"
    elif not isinstance(keys, list) or set(map(str, keys)) != outline.storages.keys():
        raise ValueError("storages without numbers")
    return outline


def _read(content: Any, start: int) -> tuple[Outline, tuple[Any, int]]:
    """Follow one pickle; returns its outline, with what it makes and where it ends."""
    stream = io.BytesIO(content) if isinstance(content, bytes) else content
    stream.seek(start)
    machine = _Machine(Outline())
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.follow(opcode, argument)
    except ValueError as error:
        # What comes before the damage, or before what is no pickle, still tells what it refers to.
        raise _Damaged(machine.outline, error) from error
    return machine.outline, (machine.result, stream.tell())


class _Machine:
    """The stack and memo of an unpickler, over symbols."""

    def __init__(self, outline: Outline) -> None:
        self.outline = outline
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.result: Any = None

    def follow(self, opcode: Any, argument: Any) -> None:
        """Do what one instruction does, as far as names and sizes depend on it."""
        name = opcode.name
        try:
            if name == "MARK":
                self.marks.append(self.stack)
                self.stack = []
            elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
                self.memo[int(argument)] = self.stack[-1]
            elif name == "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                self.stack.append(self.memo[int(argument)])
            elif name == "GLOBAL":
                self.stack.append(self._name(str(argument).replace(" ", ".")))
            elif name == "STACK_GLOBAL":
                last, module = self.stack.pop(), self.stack.pop()
                self.stack.append(self._name(f"{module}.{last}"))
            elif name in ("REDUCE", "NEWOBJ"):
                arguments, function = self.stack.pop(), self.stack.pop()
                self.stack.append(self._call(function, arguments))
            elif name == "BINPERSID":
                self.stack.append(self._storage(self.stack.pop()))
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                count = int(name[-1])
                self.stack[-count:] = [tuple(self.stack[-count:])]
            elif name in ("TUPLE", "LIST"):
                items = self._to_mark()
                self.stack.append(tuple(items) if name == "TUPLE" else items)
            elif name == "EMPTY_TUPLE":
                self.stack.append(())
            elif name == "EMPTY_LIST":
                self.stack.append([])
            elif name in ("APPEND", "APPENDS"):
                items = [self.stack.pop()] if name == "APPEND" else self._to_mark()
                if isinstance(self.stack[-1], list):
                    self.stack[-1].extend(items)
            elif name == "BUILD":
                state = self.stack.pop()
                if isinstance(self.stack[-1], _Result) and _is_view(state):
                    self._tensor(state, None)  # the oldest form: an empty tensor, set on a storage
            elif name == "STOP":
                self.result = self.stack.pop()
            elif name not in ("PROTO", "FRAME"):
                self._other(opcode, argument)
        except (IndexError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a damaged pickle at {name}") from error

    def _other(self, opcode: Any, argument: Any) -> None:
        """Take from the stack and put on it what an instruction of no further interest does."""
        if opcode.name == "INST":
            self._name(str(argument).replace(" ", "."))
        for item in reversed(opcode.stack_before):
            if item is pickletools.markobject:
                self._to_mark()
            elif item is not pickletools.stackslice:
                self.stack.pop()
        plain = argument if isinstance(argument, int | float | str | bytes) else None
        self.stack.extend(plain for _ in opcode.stack_after)

    def _to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _name(self, name: str) -> _Name:
        self.outline.names.setdefault(name)
        return _Name(name)

    def _storage(self, identity: Any) -> Any:
        if not isinstance(identity, tuple) or identity[0] not in ("storage", b"storage"):
            raise ValueError("an identity that is no storage")
        _, kind, key, _, count, *view = identity
        if count < 0:
            raise ValueError("a storage of negative size")
        item = _item_size(kind)
        key, size = str(key), item * count
        if self.outline.storages.setdefault(key, size) != size:
            raise ValueError("a storage of two sizes")
        part = view[0][2] * item if view and view[0] is not None else size
        return _Storage(key, item, min(part, size))

    def _call(self, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, _Name) else ""
        called = name.rsplit(".", 1)[-1]
        if called in _VIEWS:
            dtype = arguments[6] if called == "_rebuild_tensor_v3" else None
            return self._tensor(arguments[:4], dtype)
        if called in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return arguments[0]
        if called == "_rebuild_from_type_v2":
            return self._call(arguments[0], arguments[2])
        makes = called == "bytearray" or (name.startswith("torch.") and called.endswith("Tensor"))
        if makes and any(isinstance(argument, int) for argument in arguments):
            self.outline.complaint = f"a call of {name} that asks for memory"
        if name == "torch.Size":
            return tuple(arguments[0])
        return _Result()

    def _tensor(self, view: Sequence[Any], dtype: Any) -> _Result:
        """Return a tensor on a storage (storage, offset, sizes, strides), checked to lie in it."""
        storage, offset, sizes, strides = view
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor without a storage")
        item = _item_size(dtype) if dtype is not None else storage.item
        if offset < 0 or any(value < 0 for value in (*sizes, *strides)):
            raise ValueError("a tensor of negative size")
        count = math.prod(sizes)
        last = offset + sum((n - 1) * stride for n, stride in zip(sizes, strides, strict=True))
        if count and (last + 1) * item > storage.size:
            raise ValueError("a tensor beyond its storage")
        self.outline.unfolded += count * item
        return _Result(count * item)


def _is_view(state: Any) -> bool:
    return isinstance(state, tuple) and len(state) == 4 and isinstance(state[0], _Storage)


def _item_size(kind: Any) -> int:
    """Return the bytes of a number by the name of its storage class or dtype."""
    last = kind.name.rsplit(".", 1)[-1]
    if last == "UntypedStorage":
        return 1
    for storage, dtype in torch.storage._storage_type_to_dtype_map().items():
        if storage == last:
            return int(torch.empty(0, dtype=dtype).element_size())
    dtype = getattr(torch, last, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"numbers of the kind {last}")
    return int(torch.empty(0, dtype=dtype).element_size())


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.3g} MiB" if size < 2**60 else f"2^{size.bit_length() - 1} bytes"


def _oversized(path: Path, found: str) -> EvalkitError:
    return EvalkitError(
        f"expected a file about as large as its tensors at '{path}', found {found}; save "
        "{name: tensor.clone() for name, tensor in model.state_dict().items()} without compression"
    )
