"""Interrupts that must not arrive in the middle of something."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from vitprune.support import temporary

INTERRUPTED = 130  # what shells report for Ctrl-C
_native = 0  # bodies of `deferred` that are running


@contextmanager
def deferred() -> Iterator[None]:
    """Hold back Ctrl-C until the body is done, then raise it; the command line leaves at once instead.

    For the import of native packages: PyTorch's initialisation calls Python from C++ and ends the process with abort() when a
    KeyboardInterrupt arrives there. Does nothing outside the main thread, which alone receives interrupts.

    Raises:
        KeyboardInterrupt: after the body, when one arrived during it.
    """
    global _native
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    if signal.getsignal(signal.SIGINT) is arrived:
        _native += 1
        try:
            yield
        finally:
            _native -= 1
        return
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        seen.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if seen:
        raise KeyboardInterrupt


def install() -> None:
    """Let Ctrl-C, SIGTERM and a closed terminal end the command line; a signal that is ignored (nohup) stays so."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, arrived)


def arrived(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; during imports, which turn it into tracebacks and aborts, end the process here and now.

    Raises:
        KeyboardInterrupt: where Python code of ours runs.
    """
    if _native or _importing(frame):
        temporary.remove_held()
        leave()
    raise KeyboardInterrupt


def leave() -> None:
    """End the process without running anything more of it."""
    with suppress(OSError):
        shown = b"\x1b[?25h" if os.isatty(2) else b""  # a progress bar hides the cursor
        os.write(2, shown + b"interrupted; nothing was left half-written\n")
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError, RuntimeError):
            stream.flush()
    os._exit(INTERRUPTED)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
