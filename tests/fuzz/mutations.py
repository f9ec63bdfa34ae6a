"""Files changed at random: as bytes, as JSON, as tables, and as what else stands at a path.

Every mutation draws from the random generator that it is given alone, so that a seed tells the
input.
"""

from __future__ import annotations

import json
import os
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz.guards import CANARY, OUTSIDE

Random = random.Random

EXTREME = (0, 1, -1, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1)
CODE = f"__import__('builtins').{CANARY} = True"


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + closing * depth


WEIRD_JSON = (
    *("null", "true", "false", "0", "-1", "1", "-0.0", "2", "0.5", "3"),
    *(str(value) for value in (2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30)),
    *("1" + "0" * 400, "9" * 5000, "1e308", "-1e308", "1e400", "5e-324", "1e-400", "1E5"),
    *("NaN", "Infinity", "-Infinity", '""', '" "', '"x"', '"NaN"', '"1"', '"0.5"', '"None"'),
    *(f'"../{OUTSIDE}/secret.pt"', '"/etc/passwd"', r'"C:\\x.pt"', '"..\\\\x.pt"', '"./."', '".."'),
    *(r'"a\nb"', r'"\ud800"', r'"\u0000"', r'"\u001b[2J"', '"' + "a" * 300 + '"', '"😀"'),
    *('"' + "a" * 5000 + '.pt"', '"<script>alert(1)</script>"', '"{{7*7}}"', f'"{CODE}"'),
    *("[]", "{}", "[[]]", '{"": null}', "[null, null]", "[0]", '{"a": 1, "a": 2}', "[1e400]"),
    *(
        '"file:///etc/passwd"',
        '"hf://x/y"',
        '"a:b"',
        '"%s%n"',
        '"' + r"(\\w+)+x" + '"',
        '"(a|a)*b"',
    ),
    *(nested(70), nested(900), nested(100_000), nested(70, '{"a":', "}").replace(":}", ":1}")),
)


def some_bytes(random: Random, most: int = 64) -> bytes:
    return random.randbytes(random.randint(1, most))


def _spot(random: Random, data: bytes) -> int:
    return random.randrange(len(data) + 1)


def _block(random: Random, data: bytes) -> tuple[int, int]:
    start = _spot(random, data)
    return start, min(len(data), start + random.choice((1, 2, 4, 8, 16, 64, 512, 4096)))


def flipped(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 8, 64))):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def truncated(random: Random, data: bytes) -> bytes:
    return data[: _spot(random, data)]


def beheaded(random: Random, data: bytes) -> bytes:
    return data[_spot(random, data) :]


def without_a_block(random: Random, data: bytes) -> bytes:
    start, end = _block(random, data)
    return data[:start] + data[end:]


def with_a_block_twice(random: Random, data: bytes) -> bytes:
    start, end = _block(random, data)
    return data[:end] + data[start:end] * random.choice((1, 1, 1, 5)) + data[end:]


def with_swapped_blocks(random: Random, data: bytes) -> bytes:
    first, second = sorted((_block(random, data), _block(random, data)))
    if first[1] > second[0]:
        return data[::-1]
    middle = data[first[1] : second[0]]
    parts = data[: first[0]], data[slice(*second)], middle, data[slice(*first)], data[second[1] :]
    return b"".join(parts)


def inserted(random: Random, data: bytes) -> bytes:
    at = _spot(random, data)
    pieces = (b"\0", b"\0" * 64, b"\xff" * 8, b"\r\n", b"\xef\xbb\xbf", b"\n", b"'", b'"', b",")
    piece = random.choice((*pieces, some_bytes(random)))
    return data[:at] + piece + data[at:]


def with_an_extreme_number(random: Random, data: bytes) -> bytes:
    width = random.choice((1, 2, 4, 8))
    value = random.choice(EXTREME) % 2 ** (8 * width)
    at = random.randrange(max(1, len(data) - width + 1))
    return data[:at] + value.to_bytes(width, random.choice(("little", "big"))) + data[at + width :]


def of_another_kind(random: Random, data: bytes) -> bytes:
    made = (
        *(b"", b"\n", b"\0" * 1000, b"\x80\x02.", b"PK\x05\x06" + bytes(18), b"PK\x03\x04", b"{}"),
        *(
            b"[]",
            b"null",
            b"<html>",
            data + data,
            data[::-1],
            bytes(8),
            b"\xff" * 16,
            CODE.encode(),
        ),
        b"\x80\x04c" + CANARY.encode() + b"\nrun\n)R.",
        b"cbuiltins\nexec\n(X" + struct.pack("<I", len(CODE)) + CODE.encode() + b"tR.",
        b"cposix\nsystem\n(S'true # " + CANARY.encode() + b"'\ntR.",
        some_bytes(random, 4096),
    )
    return random.choice(made)


BYTES: tuple[Callable[[Random, bytes], bytes], ...] = (
    flipped,
    flipped,
    truncated,
    beheaded,
    without_a_block,
    with_a_block_twice,
    with_swapped_blocks,
    inserted,
    with_an_extreme_number,
    with_an_extreme_number,
    of_another_kind,
)


def changed_bytes(random: Random, data: bytes) -> bytes:
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = random.choice(BYTES)(random, data)
    return data


# --- JSON ------------------------------------------------------------------------------------

_MARK = "\ue000"  # stands for what is put in as text


def changed_json(random: Random, data: bytes) -> bytes:
    """Return a JSON file with entries replaced, left out, doubled, or written otherwise."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return changed_bytes(random, data)
    pieces: list[str] = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        content = _changed_value(random, content, pieces)
    text = json.dumps(content, ensure_ascii=random.random() < 0.5)
    for place, piece in enumerate(pieces):
        text = text.replace(json.dumps(f"{_MARK}{place}"), piece)
        text = text.replace(f'"{_MARK}{place}"', piece)
    return _changed_text(random, text)


def _changed_value(random: Random, content: Any, pieces: list[str]) -> Any:
    if isinstance(content, dict) and content and random.random() < 0.85:
        key = random.choice(list(content))
        kind = random.random()
        if kind < 0.08:
            return {name: value for name, value in content.items() if name != key}
        if kind < 0.12:
            return {**content, random.choice(("", "x", "../x", "a\nb", "__class__")): content[key]}
        if kind < 0.2:
            other = random.choice(list(content))
            return {**content, key: content[other], other: content[key]}
        return {**content, key: _changed_value(random, content[key], pieces)}
    if isinstance(content, list) and content and random.random() < 0.8:
        at, kind = random.randrange(len(content)), random.random()
        if kind < 0.1:
            return content[:at] + content[at + 1 :]
        if kind < 0.2:
            return [*content, content[at]]
        if kind < 0.25:
            return content[::-1]
        return [*content[:at], _changed_value(random, content[at], pieces), *content[at + 1 :]]
    if isinstance(content, str) and content and random.random() < 0.3:
        return changed_bytes(random, content.encode("utf-8", "surrogatepass")).decode(
            "utf-8", "replace"
        )
    if isinstance(content, int | float) and not isinstance(content, bool) and random.random() < 0.4:
        scaled = content * random.choice((-1, 0.5, 2, 10, 1e9))
        return random.choice((content + 1, content - 1, -content, str(content), scaled))
    pieces.append(random.choice(WEIRD_JSON))
    return f"{_MARK}{len(pieces) - 1}"


def _changed_text(random: Random, text: str) -> bytes:
    kind = random.random()
    if kind < 0.8:
        return text.encode("utf-8", "surrogatepass")
    if kind < 0.84:
        doubled = re.sub(r'("\w+": ?("[^"]*"|[\d.]+))', r"\1, \1", text, count=1)
        return doubled.encode("utf-8", "surrogatepass")
    if kind < 0.92:
        coding = random.choice(("utf-8-sig", "utf-16", "utf-32", "latin-1", "utf-7"))
        return text.encode(coding, "replace")
    return changed_bytes(random, text.encode("utf-8", "surrogatepass"))


# --- tables ----------------------------------------------------------------------------------

WEIRD_FIELDS = (
    *("", " ", "nan", "NaN", "inf", "-inf", "-1", "0", "1e308", "1e400", "5e-324", "-0.0", "1_0"),
    *("1" + "0" * 400, "9" * 5000, str(2**63 - 1), str(2**63), "1.5", "0x10", "١٢", "True", "yes"),
    *('"', '""', '"a\nb"', "a\rb", "\0", "\x1b[31m", "=1+1", "<script>alert(1)</script>", "😀"),
    *("a" * 300, "a" * 140_000, "sgd:x=", "sgd:" * 50, "../x", "ngd", "ief@1e-3", "\ufeff", "None"),
)


def changed_table(random: Random, data: bytes) -> bytes:
    """Return a CSV with fields, lines or columns changed."""
    lines = data.decode("utf-8", "replace").split("\n")
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        at, kind = random.randrange(len(lines)), random.random()
        fields = lines[at].split(",")
        if kind < 0.6:
            fields[random.randrange(len(fields))] = random.choice(WEIRD_FIELDS)
            lines[at] = ",".join(fields)
        elif kind < 0.66:
            lines.insert(at, lines[random.randrange(len(lines))])
        elif kind < 0.72:
            del lines[at]
        elif kind < 0.76:
            lines[at] = ",".join(fields[:-1] if random.random() < 0.5 else [*fields, "1"])
        elif kind < 0.82:
            other = random.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif kind < 0.86:
            one, other = random.randrange(len(fields)), random.randrange(len(fields))
            fields[one], fields[other] = fields[other], fields[one]
            lines[at] = ",".join(fields)
        elif kind < 0.9:
            column, value = random.randrange(len(fields)), random.choice(WEIRD_FIELDS[:20])
            lines[1:] = [_with_field(line, column, value) for line in lines[1:]]
        else:
            return _changed_text(random, "\n".join(lines))
        lines = lines or [""]
    joined = random.choice(("\n",) * 8 + ("\r\n", "\r")).join(lines)
    return joined.encode("utf-8", "surrogatepass")


def _with_field(line: str, column: int, value: str) -> str:
    fields = line.split(",")
    if len(fields) > column:
        fields[column] = value
    return ",".join(fields)


# --- places ----------------------------------------------------------------------------------


def changed_place(random: Random, path: Path) -> str:
    """Put something else at the path of a file; returns what."""
    beside = path.parent
    kinds: tuple[tuple[str, Callable[[], object]], ...] = (
        ("nothing", lambda: None),
        ("a folder", path.mkdir),
        ("a pipe", lambda: os.mkfifo(path)),
        ("a link to itself", lambda: path.symlink_to(path.name)),
        ("a link to nothing", lambda: path.symlink_to("missing")),
        ("a link to a device", lambda: path.symlink_to("/dev/zero")),
        ("a link to /dev/null", lambda: path.symlink_to("/dev/null")),
        ("a link to a folder", lambda: path.symlink_to(beside)),
        ("a file of zeros", lambda: _sparse(path, 3_000_000)),
        ("a folder with a long name", lambda: (beside / ("x" * 255)).mkdir()),
        ("a name that is not UTF-8", lambda: (beside / os.fsdecode(b"step-7\xff.pt")).touch()),
        ("a name of two lines", lambda: (beside / f"step-8\n{path.suffix}.pt").touch()),
    )
    said, make = random.choice(kinds)
    if "name" not in said:
        path.unlink()
    make()
    return said


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
