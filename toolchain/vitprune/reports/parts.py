"""What a report is made of, whatever it is written in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """One part: a title, a note, a table, a drawing (SVG text of our own, escaped by its maker), pictures (caption, data URI) in rows."""

    title: str
    note: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    pictures: tuple[tuple[tuple[str, str], ...], ...] = ()
    drawing: str = ""


@dataclass(frozen=True)
class Report:
    """A title, a status ("" where there is none to give) and sections."""

    title: str
    status: str
    sections: tuple[Section, ...]
