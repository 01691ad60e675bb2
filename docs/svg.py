"""A few shapes as SVG text."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

SANS = "Verdana, 'DejaVu Sans', sans-serif"
MONO = "Menlo, 'DejaVu Sans Mono', monospace"
INK, SOFT, PAPER = "#1f2933", "#5f6c7b", "#fbfcfe"


def page(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    """A whole picture on light paper, readable on dark pages too."""
    arrow = (
        '<marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0,0 L10,5 L0,10 z" fill="{SOFT}"/></marker>'
    )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" '
        f'role="img" aria-label="{escape(title)}">\n<title>{escape(title)}</title>\n<defs>{arrow}</defs>\n'
        f'<rect x="0.5" y="0.5" width="{width - 1:g}" '
        f'height="{height - 1:g}" rx="10" fill="{PAPER}" stroke="#d5dce5"/>\n{body}\n</svg>\n'
    )


def box(x: float, y: float, size: tuple[float, float], fill: str, stroke: str = SOFT, radius: float = 5) -> str:
    """A rectangle by its upper left corner."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{size[0]:g}" height="{size[1]:g}" rx="{radius:g}" fill="{fill}" '
        f'stroke="{stroke}" stroke-width="1"/>'
    )


def text(
    x: float,
    y: float,
    content: str,
    size: float = 12,
    *,
    mono: bool = False,
    bold: bool = False,
    anchor: str = "middle",
    fill: str = INK,
) -> str:
    """One line; y is its baseline."""
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-family="{MONO if mono else SANS}" font-size="{size:g}" text-anchor="{anchor}" '
        f'fill="{fill}"{weight}>{escape(content)}</text>'
    )


def line(
    start: tuple[float, float], end: tuple[float, float], stroke: str = SOFT, width: float = 1.2, *, arrow: bool = False
) -> str:
    """A straight line."""
    head = ' marker-end="url(#arrow)"' if arrow else ""
    ends = f'x1="{start[0]:g}" y1="{start[1]:g}" x2="{end[0]:g}" y2="{end[1]:g}"'
    return f'<line {ends} stroke="{stroke}" stroke-width="{width:g}"{head}/>'


def path(d: str, stroke: str = SOFT, width: float = 1.2, *, arrow: bool = False) -> str:
    """An open path."""
    head = ' marker-end="url(#arrow)"' if arrow else ""
    return f'<path d="{d}" fill="none" stroke="{stroke}" stroke-width="{width:g}"{head}/>'
