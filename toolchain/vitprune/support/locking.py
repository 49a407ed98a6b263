"""Locks between processes that end with the process, whatever ends it. Standard library alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: one writer at a time is then the user's matter
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """Hold a file or folder alone among the processes that ask; waits for the one that has it.

    A file system without locks grants it to everybody.

    Raises:
        OSError: there is no such file or folder.
    """
    handle = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def hold(place: Path) -> int | None:
    """Lock a file or folder until `os.close` of what is returned; None when another process has it, or locks do not work here."""
    if fcntl is None:
        return None
    handle = -1
    try:
        handle = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return handle
    except OSError:
        if handle >= 0:
            os.close(handle)
        return None
