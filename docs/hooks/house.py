"""The house as a picture: a storey for each floor, from the floors that tests/test_floors.py holds.

python docs/hooks/house.py          # writes docs/assets/house.svg
"""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLOORS = ROOT / "tests" / "test_floors.py"
PICTURE = ROOT / "docs" / "assets" / "house.svg"
WIDTH, STOREY, ROOF, MARGIN, NAMES = 960, 22, 48, 16, 236


def storeys() -> list[tuple[str, ...]]:
    """Return the rooms of each storey, the ground first: modules and subpackages of evalkit.

    A room whose parts are on several floors is where the last of them is.
    """
    (text,) = (
        node.value.value
        for node in ast.parse(FLOORS.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS"
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )
    lines = [[name.split(".")[0] for name in line.split()] for line in text.splitlines()]
    height = {room: floor for floor, line in enumerate(lines) for room in line}
    return [
        rooms
        for floor, line in enumerate(lines)
        if (rooms := tuple(dict.fromkeys(room for room in line if height[room] == floor)))
    ]


def lines(rooms: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the lines of a storey: one for each room with files of its own, one for the others."""
    large = [(room,) for room in rooms if _package(room).is_file()]
    small = tuple(room for room in rooms if not _package(room).is_file())
    return [*large, small] if small else large


def _package(room: str) -> Path:
    return ROOT / "evalkit" / room / "__init__.py"


def purpose(room: str) -> str:
    """Return the first sentence of what a room says of itself."""
    package = _package(room)
    file = package if package.is_file() else package.parent.with_suffix(".py")
    said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(said.split("\n\n")[0].split())


def picture() -> str:
    """Return the house as SVG: the roof, then the storeys from the top, with what each is for."""
    rows = [(floor, line) for floor, rooms in enumerate(storeys()) for line in lines(rooms)][::-1]
    right, bottom = WIDTH - MARGIN, ROOF + STOREY * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + MARGIN}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        "<title>The rooms of evalkit: each imports only from storeys below its own</title>",
        f'<rect width="{WIDTH}" height="{bottom + MARGIN}" fill="#fff"/>',
        f'<path d="M{MARGIN // 2} {ROOF} L{WIDTH // 2} 8 L{WIDTH - MARGIN // 2} {ROOF} Z" '
        'fill="#4051b5"/>',
        f'<text x="{WIDTH // 2}" y="{ROOF - 12}" fill="#fff" text-anchor="middle" '
        'font-weight="600">evalkit</text>',
    ]
    for number, (floor, rooms) in enumerate(rows):
        top = ROOF + STOREY * number
        shade = "#f1f3fb" if floor % 2 else "#e3e7f6"
        said = purpose(rooms[0]) if len(rooms) == 1 else ""
        names = escape("  ".join(rooms))
        parts += [
            f'<rect x="{MARGIN}" y="{top}" width="{right - MARGIN}" height="{STOREY}" '
            f'fill="{shade}"/>',
            f'<text x="{MARGIN + 12}" y="{top + 15}" fill="#1f2a63" font-weight="600" '
            f'xml:space="preserve">{names}</text>',
            f'<text x="{MARGIN + NAMES}" y="{top + 15}" fill="#333">{escape(said)}</text>',
        ]
    ground = f'<path d="M0 {bottom} H{WIDTH}" stroke="#8a8fa8" stroke-width="3"/>'
    return "\n".join([*parts, ground, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
