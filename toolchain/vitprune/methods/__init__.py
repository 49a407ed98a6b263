"""Token-reduction methods, one file each; a file in this folder is a method, there is no list to edit."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from vitprune.errors import RecipeError
from vitprune.methods.base import Method as Method
from vitprune.suggestions import did_you_mean

_SUPPORT = {"base", "cost"}


def names() -> list[str]:
    """Names of all methods."""
    return sorted(entry.name for entry in pkgutil.iter_modules(__path__) if entry.name not in _SUPPORT)


@cache
def get(name: str) -> Method:
    """The method called `name`.

    Raises:
        RecipeError: VP104 when there is none.
    """
    if name not in names():
        raise RecipeError(104, f"unknown method '{name}'", cause=did_you_mean(name, names()), next_step="vitprune methods")
    method: Method = importlib.import_module(f"vitprune.methods.{name}").METHOD
    return method


def without_cls() -> list[str]:
    """Names of the methods that work on models without a CLS token."""
    return [name for name in names() if not get(name).needs_cls]
