"""When Python looks for garbage in circles of objects. Standard library alone.

Imports and torch's exporter make hundreds of thousands of objects that stay, and every search walks over those that are there already.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

_ours = False


def in_a_process_of_its_own() -> None:
    """This process runs nothing but this package, which may then settle what is never searched again."""
    global _ours
    _ours = True


@contextlib.contextmanager
def unsearched() -> Iterator[None]:
    """No search meanwhile; what reference counts free is freed as ever."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """No search while modules are imported, nor in a process of its own ever again among what they made."""
    with unsearched():
        yield
        if _ours:
            gc.freeze()


def left_to_the_system() -> None:
    """Before a process of its own ends: what is there is not searched, the system takes its memory at once."""
    if _ours:
        gc.freeze()
