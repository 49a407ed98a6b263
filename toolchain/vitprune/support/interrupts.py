"""Interrupts that must not arrive in the middle of something."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred() -> Iterator[None]:
    """Hold back Ctrl-C until the body is done, then raise it.

    For the import of native packages: PyTorch's initialisation calls Python from C++ and ends the process with abort() when a
    KeyboardInterrupt arrives there. Does nothing outside the main thread, which alone receives interrupts.

    Raises:
        KeyboardInterrupt: after the body, when one arrived during it.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    arrived: list[int] = []

    def note(number: int, frame: Any) -> None:
        arrived.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if arrived:
        raise KeyboardInterrupt
