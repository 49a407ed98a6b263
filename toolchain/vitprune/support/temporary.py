"""Files and folders under way: beside their final place, locked while their process lives, swept by the next one when it died.

Their permissions are those that the user's umask gives. Standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from vitprune.support.locking import hold, locked

SUFFIX = ".vitprune-tmp"
held: set[Path] = set()  # of this process, for those who leave it at once


@contextmanager
def folder(place: Path) -> Iterator[Path]:
    """A new folder beside `place`; what is left of it is removed in the end.

    Raises:
        OSError: it cannot be made.
    """
    with _made(place, os.mkdir) as path:
        yield path


@contextmanager
def file(place: Path) -> Iterator[Path]:
    """A new, empty file beside `place`; removed in the end unless it was moved away.

    Raises:
        OSError: it cannot be made.
    """
    with _made(place, lambda path: os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))) as path:
        yield path


@contextmanager
def _made(place: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    parent = place.parent
    path = parent / f".{place.name[:60]}.{secrets.token_hex(6)}{SUFFIX}"
    held.add(path)
    lock = None
    try:
        with _alone(parent):  # nobody sweeps between making and locking
            _sweep(parent)
            make(path)
            lock = hold(path)
        yield path
    finally:
        remove(path)
        if lock is not None:
            os.close(lock)
        held.discard(path)


def sweep(parent: Path) -> None:
    """Remove what dead processes left in a folder; what cannot be told or removed stays."""
    with contextlib.suppress(OSError), _alone(parent):
        _sweep(parent)


def _alone(parent: Path) -> AbstractContextManager[None]:
    """Hold a folder alone. One under way in this process is held by it since it was made: to ask again would wait for itself."""
    return nullcontext() if parent in held else locked(parent)


def _sweep(parent: Path) -> None:
    """Only what carries our suffix, belongs to this user and is locked by nobody."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(parent):
            if not entry.name.endswith(SUFFIX) or entry.is_symlink() or entry.stat(follow_symlinks=False).st_uid != os.getuid():
                continue
            if (lock := hold(Path(entry.path))) is not None:
                remove(Path(entry.path))
                os.close(lock)


def remove(path: Path) -> None:
    """Remove a file or folder if it is there."""
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


def remove_held() -> None:
    """Remove everything that this process has under way."""
    for path in list(held):
        remove(path)
