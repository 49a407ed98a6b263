"""Backends, one file each with the same verbs: `missing`, `version`, `build`, `Session`.

A file in this folder is a backend; targets name it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitprune.errors import LoadError
from vitprune.support import registry
from vitprune.support.answers import joined
from vitprune.support.suggestions import did_you_mean

if TYPE_CHECKING:
    from vitprune.bundle import Bundle


@dataclass(frozen=True)
class Result:
    """logits float32 [B,classes]; kept: per site int64 [B,K] original patch numbers, ascending, padded with -1.

    Of features, logits are all outputs side by side, [B,values].
    features: of a bundle with output.kind: features, its outputs by name.
    exits: of a cascade, int64 [B], the exit (from 1) that answered each image; None for a single model.
    """

    logits: NDArray[np.float32]
    kept: list[NDArray[np.int64]]
    exits: NDArray[np.int64] | None = None
    features: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def result(heads: Sequence[NDArray[Any]], kept: list[NDArray[np.int64]], names: Sequence[str], features: bool) -> Result:
    """A Result of a graph's answers by name, and its kept lists."""
    return Result(joined(heads), kept, features=dict(zip(names, heads, strict=True)) if features else {})


def names() -> list[str]:
    """Names of all backends."""
    return registry.inside(__name__)


def get(name: str) -> Any:
    """The backend module called `name` ("-" and "_" are the same).

    Raises:
        LoadError: VP610 when there is none.
    """
    wanted = name.replace("-", "_")
    if wanted not in names():
        raise LoadError(610, f"unknown backend '{name}'", cause=did_you_mean(wanted, names()), next_step="vitprune targets")
    return registry.module(f"{__name__}.{wanted}")


def session(bundle: Bundle, name: str, target: str | None = None) -> Any:
    """A session of a bundle of a single model on a backend, with `run(x) -> Result`.

    Args:
        bundle: an opened bundle.
        name: of the backend.
        target: whose engine, for backends that run engines and a bundle that has several of them.

    Raises:
        LoadError: VP610 unknown backend, VP611 not installed here; what the backend's session raises.
    """
    backend = get(name)
    if why := backend.missing():
        raise LoadError(611, f"backend '{name}' cannot be used here", cause=why, next_step="vitprune doctor")
    return backend.Session(bundle) if target is None else backend.Session(bundle, target=target)
