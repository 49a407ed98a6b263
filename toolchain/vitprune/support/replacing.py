"""Putting a finished folder where another one is: the old one stays until the new one is complete. Standard library alone."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCHANGE = -100, 1, 2


@contextmanager
def replaced(new: Path, place: Path) -> Iterator[None]:
    """Put `new` at `place` for the body; what was there comes back when the body fails, and is removed when it does not.

    Args:
        new: a complete folder on the same file system. place: a folder, or nothing yet.

    Raises:
        OSError: nothing has changed.
    """
    there = os.path.lexists(place)
    move = _exchange if there else move_into_nothing
    move(new, place)
    try:
        yield
    except BaseException:
        _exchange(new, place) if there else os.rename(place, new)
        raise
    if there:
        shutil.rmtree(new, ignore_errors=True)


def replace_folder(new: Path, place: Path) -> None:
    """Put `new` at `place` and remove what was there.

    Raises:
        OSError: nothing has changed.
    """
    with replaced(new, place):
        pass


def move_into_nothing(new: Path, place: Path) -> None:
    """Rename to a name that nothing has yet: of two writers one gets it.

    Raises:
        FileExistsError: something is there. OSError: it cannot be moved.
    """
    if _renamed(new, place, _RENAME_NOREPLACE):
        return
    if os.path.lexists(place):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place))
    os.rename(new, place)


def _exchange(one: Path, other: Path) -> None:
    """Let two folders change places: in one step where the system can, so that `other` is there at any moment."""
    if _swapped(one, other):
        return
    aside = one.with_name(f"{one.name}.aside")
    os.rename(other, aside)
    try:
        os.rename(one, other)
    except BaseException:
        os.rename(aside, other)
        raise
    os.rename(aside, one)


def _swapped(one: Path, other: Path) -> bool:
    """Exchange in one step; False where the system or its file system cannot."""
    return _renamed(one, other, _RENAME_EXCHANGE)


def _renamed(one: Path, other: Path, how: int) -> bool:
    try:
        call = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or an old C library
        return False
    return not call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(how))
