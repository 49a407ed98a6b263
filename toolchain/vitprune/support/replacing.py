"""Putting a finished folder where another one is: the old one stays until the new one is complete. Standard library alone."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def replaced(new: Path, place: Path) -> Iterator[None]:
    """Put `new` at `place` for the body; what was there comes back when the body fails, and is removed when it does not.

    Args:
        new: a complete folder on the same file system. place: a folder, or nothing yet.

    Raises:
        OSError: nothing has changed.
    """
    there = place.exists()
    move = _exchange if there else os.rename
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
    try:
        call = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or an old C library
        return False
    return not call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE))
