"""The one place that finds modules by name: methods, backends, commands, pre-flight rules, packages of the system."""

from __future__ import annotations

import importlib
import pkgutil
from importlib import metadata
from types import ModuleType
from typing import Any


def inside(package: str, folders: bool = False) -> list[str]:
    """Names of the modules (or of the packages) in one of our packages, without those that begin with "_"."""
    path = importlib.import_module(package).__path__
    found = [entry for entry in pkgutil.iter_modules(path) if entry.ispkg == folders or not folders]
    return sorted(entry.name for entry in found if not entry.name.startswith("_"))


def from_packages(group: str) -> dict[str, str]:
    """Modules that installed packages announce in an entry-point group, by name."""
    return {entry.name: entry.value.partition(":")[0] for entry in metadata.entry_points(group=group)}


def module(name: str) -> ModuleType:
    """A module by its full name; raises ImportError."""
    return importlib.import_module(name)


def first_of(*names: str) -> Any | None:
    """The first of some modules that is installed, or None."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None
