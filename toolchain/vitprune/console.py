"""What the user sees: rich output on stderr, one JSON document on stdout with --json."""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.errors import MarkupError
from rich.markup import escape
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from vitprune.errors import VitpruneError
from vitprune.support import json_text
from vitprune.support.tables import laid_out

SCHEMA_VERSION = 1
# Control characters, which a terminal obeys, and those that turn the direction of text; half surrogate pairs, which cannot be written.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_PORTION = re.compile(r"(\d+)(?:/| of )(\d+)$")


@dataclass
class Settings:
    """Global switches set once by the command line."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))


settings = Settings()


class Closed(Exception):
    """Nobody reads on, or the disk is full: what was to be said cannot be. exit_code: 141 for a closed pipe as shells say it, else 2."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or str(error))
        self.exit_code = 141 if error.errno == errno.EPIPE else 2


def harmless(text: str) -> str:
    """Text of which nothing is obeyed by a terminal: control characters are written out."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}" if ord(found[0]) < 256 else f"\\u{ord(found[0]):04x}", text)


def plain(text: object) -> str:
    """Text in which nothing is taken for markup."""
    return escape(harmless(str(text)))


def show(content: object) -> None:
    """Print to stderr: a renderable, or a line of markup, which is shown as it stands where it is none.

    Raises:
        Closed: it cannot be written.
    """
    try:
        settings.console.print(_indented(content) if isinstance(content, str) else content)
    except OSError as error:
        raise Closed(error) from error


def _indented(line: str) -> Padding | Text:
    """A line whose further lines, where it has to be broken, are indented as the first."""
    shown = _rendered(line.lstrip(" "))
    return Padding(shown, (0, 0, 0, len(line) - len(line.lstrip(" "))), expand=False) if line.startswith(" ") else shown


def _rendered(line: str) -> Text:
    try:
        return Text.from_markup(harmless(line))
    except MarkupError:
        return Text(harmless(line))


def info(text: str) -> None:
    """Print one line of markup to stderr unless --quiet."""
    if not settings.quiet:
        show(text)


def macs_line(pruned: float, dense: float, ratio: float) -> str:
    """MACs per image of a pruned model against the dense one, in G or M, whichever reads better."""
    scale, unit = (1e9, "G") if dense >= 1e9 else (1e6, "M")
    return f"MACs per image {pruned / scale:.3f} {unit} of {dense / scale:.3f} {unit} ({ratio:.2f}x)"


def detail(text: str) -> None:
    """Print one line only with --verbose."""
    if settings.verbose and not settings.quiet:
        show(f"[dim]{text}[/dim]")


def warn(text: str) -> None:
    """Print a warning, in which nothing is markup; shown with --quiet too."""
    show(f"[yellow]warning:[/yellow] {plain(text)}")


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table to stderr unless --quiet: it fits the terminal, and what is too long stands below it."""
    if settings.quiet:
        return
    view, below = laid_out(columns, [[harmless(cell) for cell in row] for row in rows], settings.console.width)
    show(f"[italic]{plain(title)}[/italic]")
    if view is not None:
        show(view)
    for line in below:
        show(Padding(Text(line), (0, 0, 0, 2), expand=False))


def result(text: str) -> None:
    """Print the closing line of a command, markup: what it came to, in one sentence; it stays on the screen."""
    info(text)


def document(command: str, body: dict[str, Any]) -> None:
    """Write the JSON document of a command to stdout when --json was given.

    Raises:
        Closed: it cannot be written.
    """
    if settings.json:
        try:
            sys.stdout.write(json_text.written({"schema_version": SCHEMA_VERSION, "command": command, **body}))
            sys.stdout.flush()
        except OSError as error:
            raise Closed(error) from error


def give_up() -> None:
    """Let what is still buffered go nowhere: the interpreter flushes at its end, and would fail again."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())


def show_error(error: VitpruneError, command: str = "") -> None:
    """Print an error: code, what, why, next step; and its JSON form with --json."""
    show(f"[bold red]error {error.code}[/bold red] {plain(error.message)}")
    if error.cause:
        show(f"  [bold]cause[/bold] {plain(error.cause)}")
    if error.next_step:
        show(f"  [bold]next[/bold]  {plain(error.next_step)}")
    document(command, {"status": "error", "exit_code": error.exit_code, "error": error.document()})


class Step:
    """Handle of one running step; `update` changes its text, and moves a bar where the text ends in "done/all"."""

    def __init__(self, progress: Progress | None, task: Any, title: str) -> None:
        self._progress, self._task, self._title, self._phase = progress, task, title, ""

    def update(self, text: str) -> None:
        """Show `text` behind the step's title."""
        if self._progress is None:
            return
        portion = _PORTION.search(text)
        phase = text[: portion.start()] if portion else text
        if phase != self._phase:  # rate and time left are those of the phase
            self._progress.reset(self._task)
            self._progress.tasks[0].total = None  # `reset` takes None for "as it was"
            self._phase = phase
        self._progress.update(self._task, description=f"{self._title} [dim]{plain(phase.strip())}[/dim]")
        if portion:
            self._progress.update(self._task, completed=int(portion[1]), total=int(portion[2]))


class _Rate(ProgressColumn):
    """How many a second, or seconds for each."""

    def render(self, task: Task) -> Text:
        """The text; nothing while it is not known."""
        if not task.speed or task.total is None:
            return Text("")
        return Text(f"{task.speed:.3g}/s" if task.speed >= 1 else f"{1 / task.speed:.3g} s each")


class _WhereKnown(ProgressColumn):
    """A column of tasks whose end is known."""

    def __init__(self, column: ProgressColumn) -> None:
        super().__init__()
        self._column = column

    def render(self, task: Task) -> Any:
        """The column, or nothing."""
        return self._column.render(task) if task.total is not None else Text("")


def _columns() -> list[ProgressColumn]:
    known = [_WhereKnown(column) for column in (BarColumn(20), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())]
    return [SpinnerColumn(), TextColumn("{task.description}"), *known, TimeElapsedColumn()]


@contextmanager
def step(title: str) -> Iterator[Step]:
    """Show what runs, how fast, how long it has run and, where that is known, what is left; then a closing line."""
    if settings.quiet:
        yield Step(None, None, title)
        return
    if not settings.console.is_terminal:
        show(f"{title} …")
        yield Step(None, None, title)
        return
    began = time.monotonic()
    with Progress(*_columns(), console=settings.console, transient=True) as progress:
        yield Step(progress, progress.add_task(title, total=None), title)
    show(f"[green]✓[/green] {title} [dim]{time.monotonic() - began:.1f} s[/dim]")


class Bar:
    """Handle of a progress bar; `update(done, total, text)` moves it. Where there is no terminal, texts of epochs are lines."""

    def __init__(self, progress: Progress | None, task: Any, title: str) -> None:
        self._progress, self._task, self._title = progress, task, title

    def update(self, done: int, total: int, text: str) -> None:
        """Show that `done` of `total` is done."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total, description=f"{self._title} [dim]{plain(text)}[/dim]")
        elif text.startswith("epoch"):
            info(f"{done}/{total} {plain(text)}")


@contextmanager
def bar(title: str) -> Iterator[Bar]:
    """Show a bar with rate and the time that is left while the body runs."""
    if settings.quiet or not settings.console.is_terminal:
        yield Bar(None, None, title)
        return
    with Progress(*_columns(), console=settings.console, transient=True) as progress:
        yield Bar(progress, progress.add_task(title, total=None), title)
