"""Files of tensors changed where their formats have a joint: headers, entries, instructions."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Iterator

from tests.fuzz.guards import CANARY
from tests.fuzz.mutations import CODE, EXTREME, Random, changed_bytes, changed_json

# --- safetensors -----------------------------------------------------------------------------


def changed_safetensors(random: Random, data: bytes) -> bytes:
    """Return a file of safetensors with another header, or another length of it."""
    kind = random.random()
    if kind < 0.25 or len(data) < 8:
        return changed_bytes(random, data)
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    if kind < 0.35:
        size = random.choice((*EXTREME, length - 1, length + 1, len(data), 100_000_000)) % 2**64
        return size.to_bytes(8, "little") + data[8:]
    if kind < 0.45:
        cut = random.choice((8, 8 + length, 8 + length - 1, 8 + length + 1, len(data) - 1))
        return data[:cut]
    header = (_with_other_tensor if kind < 0.75 else changed_json)(random, header)
    if random.random() < 0.5:
        header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + rest


_SHAPES = ([], [0], [-1], [2**62, 2**62], [2**32, 2**32], [2**63 - 1], [1] * 200, [3, "4"])
_DTYPES = ("F64", "F32", "F16", "BF16", "I8", "U8", "BOOL", "F8_E5M2", "F4", "C64", "X", "", "U16")
_OFFSETS = (
    [0, 0],
    [0, 1],
    [0, 2**63],
    [2**63, 2**63],
    [8, 4],
    [0],
    [],
    [0, 4, 8],
    ["0", 4],
    [-4, 4],
)


def _with_other_tensor(random: Random, header: bytes) -> bytes:
    try:
        content = json.loads(header)
    except (ValueError, RecursionError):
        return header
    if not isinstance(content, dict):
        return header
    name = random.choice([key for key in content if key != "__metadata__"] or ["x"])
    found = content.get(name)
    entry = dict(found) if isinstance(found, dict) else {}
    key, values = random.choice(
        (("shape", _SHAPES), ("dtype", _DTYPES), ("data_offsets", _OFFSETS))
    )
    entry[key] = random.choice(values)
    if random.random() < 0.2:
        entry["shape"], entry["data_offsets"] = [2**40], [0, 2**42]
    others = {f"many.{i}": entry for i in range(random.choice((0, 0, 0, 2000)))}
    return json.dumps({**content, random.choice((name, name, "new")): entry, **others}).encode()


# --- pickles ---------------------------------------------------------------------------------


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _name(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def doubled(times: int, opening: bytes = b"K\x00\x85", pair: bytes = b"\x86") -> bytes:
    """Return instructions for a tuple that holds one twice that holds one twice ..."""
    steps = (
        b"r" + struct.pack("<I", 10_000 + step) + b"0"
        + 2 * (b"j" + struct.pack("<I", 10_000 + step)) + pair
        for step in range(times)
    )  # fmt: skip
    return opening + b"".join(steps)


def listed(times: int) -> bytes:
    """Return instructions for lists in the way of :func:`doubled`."""
    steps = (
        b"r" + struct.pack("<I", 20_000 + step) + b"0]("
        + 2 * (b"j" + struct.pack("<I", 20_000 + step)) + b"e"
        for step in range(times)
    )  # fmt: skip
    return b"]" + b"".join(steps)


SNIPPETS: tuple[bytes, ...] = (
    doubled(40),
    b"}" + doubled(40) + b"K\x01s",  # as the key of a dict
    listed(40),
    b"(" + doubled(30) + b"\x91",  # a frozen set of it
    b"](" + b"]" * 300 + b"a" * 299 + b"e",
    b"(" * 3000,
    b"]" * 3000 + b"a" * 2999,
    b"]r\x05\x00\x00\x00j\x05\x00\x00\x00a",  # a list that holds itself
    b"}r\x06\x00\x00\x00K\x01j\x06\x00\x00\x00s",  # a dict that holds itself
    *(b"\x8b" + struct.pack("<i", size) for size in (2**31 - 1, -1, 2**20)),
    *(b"X" + struct.pack("<I", size) for size in (2**32 - 1, 2**31)),
    *(code + struct.pack("<Q", 2**63 - 1) for code in (b"\x8d", b"\x8e", b"\x95", b"\x96")),
    b"\x8a\xff" + b"\xff" * 254 + b"\x7f",  # a number of 255 bytes
    b"L" + b"9" * 6000 + b"L\n",
    b"I" + b"9" * 6000 + b"\n",
    b"Fnan\n",
    b"G" + b"\x7f\xf0" + bytes(6),
    _name(CANARY, "run") + b")R",
    _name("builtins", "exec") + _text(CODE) + b"\x85R",
    _name("builtins", "eval") + _text(CODE) + b"\x85R",
    _name("os", "system") + _text(f"true {CANARY}") + b"\x85R",
    _name("posix", "system") + _text(f"true {CANARY}") + b"\x85R",
    _text("builtins") + _text("exec") + b"\x93" + _text(CODE) + b"\x85R",
    _name("builtins", "getattr") + _name("torch", "os") + _text("system") + b"\x86R",
    _name("torch.hub", "load") + _text("../x") + _text("x") + b"\x86R",
    _name("torch", "load") + _text("/etc/passwd") + b"\x85R",
    _name("torch.serialization", "load") + _text("x") + b"\x85R",
    _name("builtins", "bytearray") + b"J\x00\x00\x00\x70\x85R",
    _name("builtins", "bytearray") + b"\x8a\x05\x00\x00\x00\x00\x01\x85R",
    _name("builtins", "complex") + _text("x" * 100) + b"\x85R",
    _name("builtins", "set") + doubled(30) + b"\x85R",
    _name("collections", "OrderedDict") + listed(30) + b"\x85R",
    _name("collections", "Counter") + doubled(30) + b"\x85R",
    _name("collections", "defaultdict") + _name("builtins", "exec") + b"\x85R",
    _name("torch", "Size") + doubled(30) + b"\x85R",
    _name("torch", "device") + _text("cuda:99") + b"\x85R",
    _name("torch", "FloatTensor") + b"J\x00\x00\x00\x70\x85R",
    _name("torch", "Tensor") + b"J\x00\x00\x00\x70\x85R",
    _name("torch._utils", "_rebuild_tensor_v2") + b"(NNNNNt" + b"R",
    _name("torch._utils", "_rebuild_parameter") + b"K\x01K\x01K\x01\x87R",
    _name("torch._utils", "_rebuild_meta_tensor_no_storage")
    + b"("
    + _name("torch", "float32")
    + b"(\x8a\x07\x00\x00\x00\x00\x00\x00\x01t(K\x01t\x89tR",
    _name("torch._utils", "_rebuild_sparse_tensor") + b"NN\x86R",
    _name("_codecs", "encode") + _text("x") + _text("rot13") + b"\x86R",
    _name("numpy", "zeros") + b"J\x00\x00\x00\x70\x85R",
    _name("numpy._core.multiarray", "_reconstruct") + b")R",
    _name("argparse", "Namespace") + b")\x81}" + _text("x") + b"K\x01sb",
    _name("pathlib", "PosixPath") + _text("/etc/passwd") + b"\x85R",
    b"2" * 50,
    b"0",
    b"00",
    b"1",
    b"N",
    b"(",
    b"t",
    b"R",
    b"b",
    b"s",
    b"u",
    b"e",
    b"a",
    b"Q",
    b"h\xc8",
    b"j\xff\xff\xff\x7f",
    b"q\x00",
    b"r\xff\xff\xff\xff",
    b"\x94" * 100,
    b"K\x03",
    b".",
)


def _instructions(content: bytes) -> Iterator[tuple[int, str]]:
    try:
        for opcode, _, position in pickletools.genops(content):
            yield position or 0, opcode.name
    except ValueError:
        return


def changed_pickle(random: Random, content: bytes) -> bytes:
    """Return a pickle with instructions put in, left out, doubled, or with other numbers."""
    places, kind = list(_instructions(content)), random.random()
    if not places or kind < 0.2:
        return changed_bytes(random, content)
    if kind < 0.45:  # one more entry of the dict that most pickles are
        end, more = places[-1][0], random.choice(SNIPPETS)
        name, value = _text("x"), b"K\x01"
        entry = random.choice((name + more, name + more, more + value, name + b"(" + more + b"l"))
        return content[:end] + entry + b"s" + content[end:]
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places = list(_instructions(content)) or [(0, "")]
        at, kind = random.randrange(len(places)), random.random()
        start = places[at][0]
        end = places[at + 1][0] if at + 1 < len(places) else len(content)
        if kind < 0.3:
            content = content[:start] + random.choice(SNIPPETS) + content[start:]
        elif kind < 0.4:
            content = content[:start] + random.choice(SNIPPETS) + b"0" + content[start:]
        elif kind < 0.55:
            values = [place for place, (_, name) in enumerate(places) if name in _VALUES]
            at = random.choice(values or [at])
            start = places[at][0]
            end = places[at + 1][0] if at + 1 < len(places) else len(content)
            content = content[:start] + random.choice(SNIPPETS) + content[end:]
        elif kind < 0.75:
            numbers = [place for place, (_, name) in enumerate(places) if name.startswith("BININT")]
            at = random.choice(numbers or [at])
            start = places[at][0]
            end = places[at + 1][0] if at + 1 < len(places) else len(content)
            content = content[:start] + _number(random) + content[end:]
        elif kind < 0.82:
            content = content[:start] + content[end:]
        elif kind < 0.88:
            content = content[:end] + content[start:end] + content[end:]
        elif kind < 0.94:
            content = content[:start]
        else:
            other = random.randrange(len(places) - 1) if len(places) > 1 else 0
            piece = content[places[other][0] : places[min(other + 1, len(places) - 1)][0]]
            content = content[:start] + piece + content[end:]
    return content


_VALUES = ("BININT", "BININT1", "BININT2", "BINUNICODE", "NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT")


def _number(random: Random) -> bytes:
    value = random.choice((*EXTREME, 2**64, 10**30, -(2**63), 3, 12, 10**9, 6 * 10**9))
    plain = pickle.dumps(value, 2)[2:-1]
    return random.choice((plain, plain, b"G" + struct.pack(">d", float(value)), b"N", b"\x88"))


# --- archives --------------------------------------------------------------------------------


def entries(data: bytes) -> list[tuple[str, bytes]]:
    """Return the entries of an archive, none of what is none."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    except Exception:  # what is damaged already is changed as bytes
        return []


def packed(parts: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """Return an archive of entries."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, content in parts:
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return made.getvalue()


def changed_archive(random: Random, data: bytes) -> bytes:
    """Return a file of ``torch.save`` with another pickle, other entries or other records."""
    parts, kind = entries(data), random.random()
    if not parts or kind < 0.15:
        return changed_bytes(random, data)
    if kind < 0.3:
        return _with_other_record(random, data)
    at = next((i for i, (name, _) in enumerate(parts) if name.endswith("data.pkl")), 0)
    if kind < 0.8:
        parts[at] = (parts[at][0], changed_pickle(random, parts[at][1]))
    else:
        parts = _with_other_entry(random, parts)
    method = random.choice((zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    made = packed(parts, method)
    return changed_bytes(random, made) if random.random() < 0.1 else made


def _with_other_entry(random: Random, parts: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    at, kind = random.randrange(len(parts)), random.random()
    name, content = parts[at]
    if kind < 0.25:
        return parts[:at] + parts[at + 1 :]
    if kind < 0.4:
        home = name.rsplit("/", 1)[0]
        names = ("../x", "/etc/x", f"{home}/../x", f"{home}/constants.pkl", f"{home}/code/x.py", "")
        return [*parts, (random.choice((*names, name.upper(), f"{home}/.data/x")), content)]
    if kind < 0.5:
        return [*parts, (f"{name}x", bytes(random.choice((10, 2_000_000, 30_000_000))))]
    if kind < 0.6:
        return parts[::-1]
    if kind < 0.7:
        return [(f"other/{name.split('/', 1)[-1]}", content) for name, content in parts]
    changed = content + bytes(64) if kind < 0.8 else changed_bytes(random, content)
    return [*parts[:at], (name, changed), *parts[at + 1 :]]


_RECORDS = (
    b"PK\x01\x02",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"PK\x06\x07",
    b"PK\x07\x08",
)


def _with_other_record(random: Random, data: bytes) -> bytes:
    """Return an archive with an extreme number in one of its records."""
    signature = random.choice(_RECORDS)
    places = [i for i in range(len(data)) if data.startswith(signature, i)]
    if not places:
        return changed_bytes(random, data)
    start, width = random.choice(places) + 4, random.choice((2, 4))
    at = start + random.randrange(0, 42, 2)
    value = random.choice(EXTREME) % 2 ** (8 * width)
    return data[:at] + value.to_bytes(width, "little") + data[at + width :]


# --- any -------------------------------------------------------------------------------------


def changed_weights(random: Random, data: bytes) -> bytes:
    """Return a file of tensors of any format, changed in the way of that format."""
    if data[:2] == b"PK":
        return changed_archive(random, data)
    if data[:1] == b"\x80":
        return changed_pickle(random, data)
    return changed_safetensors(random, data)
