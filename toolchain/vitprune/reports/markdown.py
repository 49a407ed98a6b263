"""A report as Markdown, for pull requests and job summaries; pictures are left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vitprune.errors import RecipeError
from vitprune.reports.parts import Report

SUMMARY = "GITHUB_STEP_SUMMARY"
MOST_ROWS = 60


def markdown(report: Report) -> str:
    """The text."""
    lines = [f"## {_plain(report.title)}" + (f": {report.status.upper()}" if report.status else "")]
    for part in report.sections:
        if not part.columns:
            continue
        lines += ["", f"### {_plain(part.title)}", *([_plain(part.note), ""] if part.note else [])]
        lines += [_row(part.columns), _row(["---"] * len(part.columns)), *(_row(row) for row in part.rows[:MOST_ROWS])]
        if len(part.rows) > MOST_ROWS:
            lines += ["", f"{len(part.rows) - MOST_ROWS} further rows are left out"]
    return "\n".join(lines) + "\n"


def append_summary(text: str) -> Path:
    """Append to the job summary of a GitHub action.

    Raises:
        RecipeError: VP107 there is none here, or it cannot be written.
    """
    named = os.environ.get(SUMMARY, "")
    try:
        if not named:
            raise FileNotFoundError(2, f"{SUMMARY} is not set: this is no step of a GitHub action")
        with Path(named).open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")
    except OSError as error:
        raise RecipeError(
            107, "the job summary cannot be written", cause=error.strerror or str(error), next_step="--markdown FILE instead"
        ) from error
    return Path(named)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell) or " " for cell in cells) + " |"


def _plain(text: str) -> str:
    """Text in which nothing is markup: cells stay cells, tags stay text."""
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace("`", "\\`").replace("*", "\\*").replace("[", "\\[")
