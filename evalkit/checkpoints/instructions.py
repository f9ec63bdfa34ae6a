"""The instructions of a pickle, followed on symbols: what it declares, and what it would make.

No function is called, no class is made, no number of a tensor is read. A few bytes can declare
gigabytes, more numbers than there are, or a tuple of which every level holds the one below twice,
whose hash takes longer than anybody waits: so sizes, levels and repetitions are bounded here.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from evalkit.storage.json_files import DEEPEST

MOST_REPEATED = 16
"""What containers may hold when all that they share is written out, in instructions..."""
ALWAYS_REPEATED = 2**16
"""...and as a number, where that is more; as many containers may be made, where a pickle is small.
"""
BYTES_EACH = 3
"""Bytes of a pickle for each container and each mark, at least."""
_DIMENSIONS = 64
_LARGEST = 2**63
_VIEWS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor")
_HOLD = ("OrderedDict", "Counter", "set")  # of other objects nothing is kept
_MAKERS = ("MARK", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "LIST", "DICT", "FROZENSET")


class Damaged(ValueError):
    """A pickle that ends early or is none; ``outline`` is that of its beginning."""

    def __init__(self, outline: Outline, error: Exception) -> None:
        super().__init__(str(error))
        self.outline = outline


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


def follow(content: Any, start: int) -> tuple[Outline, Any, int]:
    """Follow one pickle.

    Args:
        content: bytes, or a file that is mapped into memory.
        start: where the pickle begins.

    Returns:
        Its outline, what it makes, and where it ends.

    Raises:
        Damaged: it is none, ends early, or makes what nobody saves.
    """
    stream = io.BytesIO(content) if isinstance(content, bytes) else content
    stream.seek(start)
    machine = _Machine(len(content) - start)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.follow(opcode, argument)
    except (ValueError, OverflowError) as error:
        # What comes before the damage, or before what is no pickle, still tells what it refers to.
        raise Damaged(machine.outline, error) from error
    return machine.outline, machine.result, stream.tell()


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


@dataclass(eq=False)
class _Made:
    """What a call would return, or a dict: what it holds, and its bytes where it is a tensor."""

    items: list[Any] = field(default_factory=list)


class _Tuple(tuple[Any, ...]):
    """A tuple that knows how much it holds when what it shares is written out."""

    weight: int


class _Machine:
    """The stack and memo of an unpickler, over symbols."""

    def __init__(self, size: int) -> None:
        self.outline = Outline()
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.result: Any = None
        self.done = self.containers = 0
        self.most_containers = max(ALWAYS_REPEATED, size // BYTES_EACH)

    @property
    def _most(self) -> int:
        return max(ALWAYS_REPEATED, MOST_REPEATED * self.done)

    def follow(self, opcode: Any, argument: Any) -> None:
        """Do what one instruction does, as far as names and sizes depend on it."""
        name = opcode.name
        self.done += 1
        if name in _MAKERS:
            self.containers += 1
            if self.containers > self.most_containers:
                raise ValueError("more containers than members")
        try:
            self._follow(name, opcode, argument)
        except (IndexError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a damaged pickle at {name}") from error

    def _follow(self, name: str, opcode: Any, argument: Any) -> None:
        stack = self.stack
        if name == "MARK":
            self.marks.append(stack)
            self.stack = []
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[int(argument)])
        elif name == "GLOBAL":
            stack.append(self._name(str(argument).replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            last, module = stack.pop(), stack.pop()
            if not isinstance(last, str) or not isinstance(module, str):
                raise ValueError("a name that is no text")
            stack.append(self._name(f"{module}.{last}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._call(function, arguments))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [self._tuple(stack[-count:])]
        elif name == "TUPLE":
            items = self._to_mark()
            self.stack.append(self._tuple(items))
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name in ("LIST", "EMPTY_LIST"):
            items = self._to_mark() if name == "LIST" else []
            self.stack.append(items)
        elif name in ("DICT", "EMPTY_DICT"):
            items = self._to_mark() if name == "DICT" else []
            self.stack.append(_Made(items))
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"):
            last = {"APPEND": 1, "SETITEM": 2}.get(name, 0)
            self._put([stack.pop() for _ in range(last)] if last else self._to_mark())
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], _Made) and _is_view(state):
                self._tensor(state, None)  # the oldest form: an empty tensor, set on a storage
        elif name == "STOP":
            self.result = stack.pop()
            check_shared(self.result, self._most)
        elif name not in ("PROTO", "FRAME"):
            self._other(opcode, argument)

    def _other(self, opcode: Any, argument: Any) -> None:
        """Take from the stack and put on it what an instruction of no further interest does."""
        if opcode.name == "INST":
            self._name(str(argument).replace(" ", "."))
        if opcode.name == "DUP":
            self.stack.append(self.stack[-1])
            return
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

    def _put(self, items: list[Any]) -> None:
        """Put items into the container on top."""
        into = self.stack[-1]
        if isinstance(into, list | _Made):
            (into if isinstance(into, list) else into.items).extend(items)

    def _tuple(self, items: Sequence[Any]) -> _Tuple:
        made = _Tuple(items)
        made.weight = 1 + sum(getattr(item, "weight", 1) for item in items)
        if made.weight > self._most:
            raise ValueError("tuples that repeat what they hold")
        return made

    def _name(self, name: str) -> _Name:
        self.outline.names.setdefault(name)
        return _Name(name)

    def _storage(self, identity: Any) -> Any:
        if not isinstance(identity, tuple) or identity[0] not in ("storage", b"storage"):
            raise ValueError("an identity that is no storage")
        _, kind, key, _, count, *view = identity
        if not isinstance(key, str | int) or not _is_count(count):
            raise ValueError("a storage of no size")
        item = _item_size(kind)
        key, size = str(key), item * count
        if self.outline.storages.setdefault(key, size) != size:
            raise ValueError("a storage of two sizes")
        part = size
        if view and view[0] is not None:
            if not _is_count(view[0][2]):
                raise ValueError("a part of a storage of no size")
            part = view[0][2] * item
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
            return self._tuple(arguments[0])
        return _Made([arguments] if called in _HOLD else [])

    def _tensor(self, view: Sequence[Any], dtype: Any) -> _Made:
        """Return a tensor on a storage (storage, offset, sizes, strides), checked to lie in it."""
        storage, offset, sizes, strides = view
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor without a storage")
        item = _item_size(dtype) if dtype is not None else storage.item
        if len(sizes) > _DIMENSIONS or not all(map(_is_count, (offset, *sizes, *strides))):
            raise ValueError("a tensor of no size")
        count = math.prod(sizes)
        last = offset + sum((n - 1) * stride for n, stride in zip(sizes, strides, strict=True))
        if count and (last + 1) * item > storage.size:
            raise ValueError("a tensor beyond its storage")
        self.outline.unfolded += count * item
        return _Made()


def check_shared(value: Any, most: int) -> None:
    """Refuse what holds itself, is nested without end, or repeats what it holds again and again.

    Args:
        value: a nesting of tuples, lists and what calls make.
        most: members, when all that is shared is written out.

    Raises:
        ValueError: it is such.
    """
    weights: dict[int, tuple[int, int]] = {}  # of what is done: members and levels
    begun: set[int] = set()
    stack = [value]
    while stack:
        top = stack[-1]
        inner = _members(top)
        if inner is None or id(top) in weights:
            stack.pop()
            continue
        first = [one for one in inner if id(one) not in weights and _members(one) is not None]
        if first:
            begun.add(id(top))
            if any(id(one) in begun for one in first):
                raise ValueError("a container that holds itself")
            stack.extend(first)
            continue
        known = [weights[id(one)] for one in inner if id(one) in weights]
        members = 1 + len(inner) + sum(one for one, _ in known)
        levels = 1 + max((level for _, level in known), default=0)
        if members > most or levels > DEEPEST:
            raise ValueError("containers that repeat what they hold, or nested without end")
        weights[id(top)] = members, levels
        stack.pop()


def _members(value: Any) -> Sequence[Any] | None:
    """Return what a container holds, None for what is none."""
    if isinstance(value, _Made):
        return value.items
    return value if isinstance(value, list | tuple) else None


def _is_view(state: Any) -> bool:
    return isinstance(state, tuple) and len(state) == 4 and isinstance(state[0], _Storage)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


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
