"""How a style looks beside its name: a piece of its line with a marker, as SVG for a page."""

from __future__ import annotations

from evalkit.figures.palette import Style

_SIZE = (34, 14)
# Outlines around (0, 0), of matplotlib's markers.
_SQUARE, _TRIANGLE = "-4,-4 4,-4 4,4 -4,4", "0,-5 4.6,3.6 -4.6,3.6"
_CROSS = (
    "-1.7,-5 1.7,-5 1.7,-1.7 5,-1.7 5,1.7 1.7,1.7 1.7,5 -1.7,5 -1.7,1.7 -5,1.7 -5,-1.7 -1.7,-1.7"
)
_STAR = "0,-5.5 1.4,-1.9 5.2,-1.7 2.3,0.7 3.2,4.5 0,2.4 -3.2,4.5 -2.3,0.7 -5.2,-1.7 -1.4,-1.9"
_OUTLINES = {
    "s": (_SQUARE, 0),
    "D": (_SQUARE, 45),
    "^": (_TRIANGLE, 0),
    "v": (_TRIANGLE, 180),
    "<": (_TRIANGLE, -90),
    ">": (_TRIANGLE, 90),
    "P": (_CROSS, 0),
    "X": (_CROSS, 45),
    "p": ("0,-5 4.8,-1.5 2.9,4 -2.9,4 -4.8,-1.5", 0),
    "*": (_STAR, 0),
}


def swatch(style: Style) -> str:
    """Return a drawing of ``style``, 34 x 14 pixels."""
    width, height = _SIZE
    dashes = " ".join(f"{2 * length:g}" for length in style.dashes)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    line = f'<path d="M0 {height / 2:g}H{width}"{dashed}/>'
    marker = f'<g transform="translate({width / 2:g} {height / 2:g})">{_marker(style)}</g>'
    return (
        f'<svg class="swatch" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'fill="{style.color}" stroke="{style.color}" aria-hidden="true">'
        f'<g stroke-width="2" fill="none">{line}</g><g stroke="none">{marker}</g></svg>'
    )


def _marker(style: Style) -> str:
    if not style.marker:
        return ""
    if style.marker not in _OUTLINES:
        return '<circle r="4"/>'
    points, turn = _OUTLINES[style.marker]
    return f'<polygon points="{points}" transform="rotate({turn})"/>'
