"""Draws docs/architecture.svg: the rooms of docs/layers.yaml and what they stand on, read from the imports.

    python docs/draw_architecture.py

An arrow goes from a room to each room it imports directly, save those it also reaches through another arrow.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape

from imports import Import, Layers, imports, modules, reachable, read_layers

PICTURE = Path(__file__).parent / "architecture.svg"
WIDTH, ROW, BOX, HIGH, LEFT = 1160, 84, 206, 50, 20
STYLE = (
    "text{font-family:sans-serif;fill:#1b2733}.name{font-size:15px;font-weight:600}.holds{font-size:11px}"
    ".band{fill:#f3f6f9}.room{fill:#fff;stroke:#4a6785}path{fill:none;stroke:#8aa1b8;stroke-width:1.2}"
)


def arrows(found: list[Import], layers: Layers) -> list[tuple[str, str]]:
    """(room, room below): imports between rooms without those that others imply."""
    ahead: dict[str, set[str]] = {}
    for one in found:
        here, there = layers.room(one.importer), layers.room(one.imported)
        if here != there:
            ahead.setdefault(here, set()).add(there)
    implied = {room: set().union(*(reachable(other, ahead) for other in below)) for room, below in ahead.items()}
    return sorted((room, other) for room, below in ahead.items() for other in below - implied[room])


def draw(found: list[Import], layers: Layers, names: list[str]) -> str:
    """The picture as SVG text."""
    sizes = Counter(layers.room(name) for name in names)
    height = ROW * len(layers.rows) + 10
    at = {}
    for level, row in enumerate(layers.rows):
        top = height - ROW * (level + 1) + 8
        gap = (WIDTH - 2 * LEFT - BOX * len(row)) / (len(row) + 1)
        for place, room in enumerate(row):
            alone = (level % 3) * (WIDTH - 2 * LEFT - BOX) / 2  # not all below each other, so that arrows do not run behind boxes
            at[room] = (LEFT + (gap * (place + 1) + BOX * place if len(row) > 1 else alone), top)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Rooms and layers of vitprune">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        '<path d="M1,1 L7,4 L1,7"/></marker></defs>',
    ]
    parts += [
        f'<rect class="band" x="4" y="{height - ROW * (level + 1)}" width="{WIDTH - 8}" height="{ROW - 18}" rx="6"/>'
        for level in range(len(layers.rows))
    ]
    for room, below in arrows(found, layers):
        (x, y), (u, v) = at[room], at[below]
        x, y, u = x + BOX / 2, y + HIGH, u + BOX / 2
        bend = (v - y) / 2
        parts.append(
            f'<path marker-end="url(#tip)" d="M{x:.0f},{y:.0f} C{x:.0f},{y + bend:.0f} {u:.0f},{v - bend:.0f} {u:.0f},{v:.0f}"/>'
        )
    for room, (x, y) in at.items():
        count = f"{sizes[room]} module{'s' if sizes[room] != 1 else ''}"
        parts += [
            f'<rect class="room" x="{x:.0f}" y="{y:.0f}" width="{BOX}" height="{HIGH}" rx="6"/>',
            f'<text class="name" x="{x + 10:.0f}" y="{y + 21:.0f}">{escape(room)} <tspan class="holds">({count})</tspan></text>',
            f'<text class="holds" x="{x + 10:.0f}" y="{y + 39:.0f}">{escape(layers.holds.get(room, ""))}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def picture() -> str:
    """The picture of the package as it is."""
    return draw(imports(), read_layers(), list(modules()))


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
