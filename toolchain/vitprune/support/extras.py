"""Packages that come with vitprune's extras: absent ones are named with the command that installs them."""

from __future__ import annotations

import importlib.util

from vitprune.errors import TargetError
from vitprune.support import garbage, interrupts, registry


def require(purpose: str, extra: str, *modules: str) -> None:
    """Refuse to go on without the modules of an extra.

    Raises:
        TargetError: VP201, naming what is not installed.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise TargetError(
            201,
            f"{purpose} needs {' and '.join(missing)}",
            cause=f"the extra '{extra}' is not installed",
            next_step=f"pip install 'vitprune[{extra}]'",
        )


def import_torch(purpose: str) -> None:
    """Import torch and timm; raise TargetError VP201 when one is not installed."""
    require(purpose, "torch", "torch", "timm")
    with interrupts.deferred(), garbage.imports():
        registry.module("timm")  # brings torch
