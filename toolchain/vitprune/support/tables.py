"""Tables for a terminal: no line is longer than the terminal is wide, no cell is cut or broken; what is too long goes below, row by row."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

_NUMBER = re.compile(r"[-+<>≤~]?\d|[-–]?$")
_GAP = 3  # characters between columns


def laid_out(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> tuple[Table | None, list[str]]:
    """A table that fits, and lines of what did not.

    Args:
        columns: heads. rows: texts, as many in each row as there are heads; none holds control characters. width: of the terminal.

    Returns:
        The table (None where even the first column is too wide) and lines "first cell: text" of the columns that went below.
        Longest columns go first; the first column stays as long as anything does.
    """
    inside, below = list(range(len(columns))), []
    while inside and _width(columns, rows, inside) > width:
        out = max(inside[1:] or inside, key=lambda place: _longest(rows, place))
        inside.remove(out)
        below.append(out)
    lines = _below(columns, rows, sorted(below), bool(inside)) if below else []
    return (_table(columns, rows, inside, width) if inside else None), lines


def _longest(rows: Sequence[Sequence[str]], place: int) -> int:
    return max((Text(row[place]).cell_len for row in rows), default=0)


def _word(text: str) -> int:
    return max((Text(word).cell_len for word in text.split()), default=0)


def _width(columns: Sequence[str], rows: Sequence[Sequence[str]], inside: list[int]) -> int:
    """With heads broken between words, cells not at all."""
    return sum(_GAP + max(_longest(rows, place), _word(columns[place])) for place in inside) - _GAP


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], inside: list[int], width: int) -> Table:
    whole = sum(_GAP + max(_longest(rows, place), Text(columns[place]).cell_len) for place in inside) - _GAP
    view = Table(box=box.MINIMAL_HEAVY_HEAD, show_edge=False, pad_edge=False)
    for place in inside:
        room = max(_longest(rows, place), _word(columns[place]))
        head = columns[place] if whole <= width else _broken(columns[place], room)
        filled = [row[place] for row in rows if row[place] not in ("", "–")]
        numbers = place > 0 and bool(filled) and all(_NUMBER.match(cell) for cell in filled)
        view.add_column(Text(head), justify="right" if numbers else "left", no_wrap=True)
    for row in rows:
        view.add_row(*(escape(row[place]) for place in inside))
    return view


def _broken(head: str, room: int) -> str:
    """A head in lines of whole words."""
    lines = [""]
    for word in head.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > room:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines)


def _below(columns: Sequence[str], rows: Sequence[Sequence[str]], places: list[int], labelled: bool) -> list[str]:
    """Rows with the same text share a line."""
    lines = []
    for place in places:
        same: dict[str, list[str]] = {}
        for row in rows:
            if row[place]:
                same.setdefault(row[place], []).append(row[0] if labelled and place else "")
        head = f"{columns[place]}, " if len(places) > 1 and columns[place] else ""
        for text, names in same.items():
            shown = ", ".join(name for name in names if name)
            lines.append(f"{head}{shown}: {text}" if shown else text)
    return lines
