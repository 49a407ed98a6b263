"""What is trained, one file per method that needs more than its reference in training mode; found by the method's name."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitprune.training.behaviours._base import Behaviour


def names() -> list[str]:
    """Methods with a file of their own."""
    import pkgutil

    return sorted(entry.name for entry in pkgutil.iter_modules(__path__) if not entry.name.startswith("_"))


def of(method: str) -> type[Behaviour]:
    """The behaviour of a method: its own file, else the reference in training mode."""
    name = method if method in names() else "_reduction"
    found: Any = importlib.import_module(f"vitprune.training.behaviours.{name}").BEHAVIOUR
    return found
