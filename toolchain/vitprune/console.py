"""What the user sees: rich output on stderr, one JSON document on stdout with --json."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from vitprune.errors import VitpruneError

SCHEMA_VERSION = 1
_NUMBER = re.compile(r"[-+<>≤~]?\d|[-–]?$")


@dataclass
class Settings:
    """Global switches set once by the command line."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))


settings = Settings()


def info(text: str) -> None:
    """Print one line of markup to stderr unless --quiet."""
    if not settings.quiet:
        settings.console.print(text)


def plain(text: str) -> str:
    """Text in which nothing is taken for markup."""
    return escape(text)


def macs_line(pruned: float, dense: float, ratio: float) -> str:
    """MACs per image of a pruned model against the dense one, in G or M, whichever reads better."""
    scale, unit = (1e9, "G") if dense >= 1e9 else (1e6, "M")
    return f"MACs per image {pruned / scale:.3f} {unit} of {dense / scale:.3f} {unit} ({ratio:.2f}x)"


def detail(text: str) -> None:
    """Print one line only with --verbose."""
    if settings.verbose and not settings.quiet:
        settings.console.print(f"[dim]{text}[/dim]")


def warn(text: str) -> None:
    """Print a warning; shown with --quiet too."""
    settings.console.print(f"[yellow]warning:[/yellow] {text}")


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table to stderr unless --quiet; columns of numbers are right-aligned."""
    if settings.quiet:
        return
    view = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        filled = [row[position] for row in rows if row[position] not in ("", "–")]
        numbers = position > 0 and bool(filled) and all(_NUMBER.match(cell) for cell in filled)
        view.add_column(column, justify="right" if numbers else "left")
    for row in rows:
        view.add_row(*(escape(cell) for cell in row))
    settings.console.print(view)


def document(command: str, body: dict[str, Any]) -> None:
    """Write the JSON document of a command to stdout when --json was given."""
    if settings.json:
        sys.stdout.write(json.dumps({"schema_version": SCHEMA_VERSION, "command": command, **body}, indent=2) + "\n")
        sys.stdout.flush()


def show_error(error: VitpruneError, command: str = "") -> None:
    """Print an error: code, what, why, next step; and its JSON form with --json."""
    settings.console.print(f"[bold red]error {error.code}[/bold red] {escape(error.message)}")
    if error.cause:
        settings.console.print(f"  [bold]cause[/bold] {escape(error.cause)}")
    if error.next_step:
        settings.console.print(f"  [bold]next[/bold]  {escape(error.next_step)}")
    document(command, {"status": "error", "exit_code": error.exit_code, "error": error.document()})


class Step:
    """Handle of one running step; `update` changes its text."""

    def __init__(self, progress: Progress | None, task: Any, title: str) -> None:
        self._progress, self._task, self._title = progress, task, title

    def update(self, text: str) -> None:
        """Show `text` behind the step's title."""
        if self._progress is not None:
            self._progress.update(self._task, description=f"{self._title} [dim]{escape(text)}[/dim]")


@contextmanager
def step(title: str) -> Iterator[Step]:
    """Show a spinner with elapsed time while the body runs, then a closing line."""
    if settings.quiet:
        yield Step(None, None, title)
        return
    if not settings.console.is_terminal:
        settings.console.print(f"{title} …")
        yield Step(None, None, title)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=settings.console, transient=True) as progress:
        task = progress.add_task(title)
        yield Step(progress, task, title)
        elapsed = progress.tasks[0].elapsed or 0.0
    settings.console.print(f"[green]✓[/green] {title} [dim]{elapsed:.1f} s[/dim]")


class Bar:
    """Handle of a progress bar; `update(done, total, text)` moves it. Where there is no terminal, texts of epochs are lines."""

    def __init__(self, progress: Progress | None, task: Any, title: str) -> None:
        self._progress, self._task, self._title = progress, task, title

    def update(self, done: int, total: int, text: str) -> None:
        """Show that `done` of `total` is done."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total, description=f"{self._title} [dim]{escape(text)}[/dim]")
        elif text.startswith("epoch"):
            info(f"{done}/{total} {escape(text)}")


@contextmanager
def bar(title: str) -> Iterator[Bar]:
    """Show a bar with the time that is left while the body runs."""
    if settings.quiet or not settings.console.is_terminal:
        yield Bar(None, None, title)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=settings.console, transient=True) as progress:
        yield Bar(progress, progress.add_task(title, total=None), title)
