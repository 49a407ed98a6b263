"""Checkpoints of a run: written whole or not at all, and refused for another run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from vitprune.errors import LoadError, RecipeError

FILE = "checkpoint.pt"
FORMAT = 1


def save(folder: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint of a folder; a kill at any moment leaves the old one or the new one."""
    temporary = folder / f"{FILE}.tmp"
    with temporary.open("wb") as stream:
        torch.save({"format": FORMAT, **state}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, folder / FILE)


def load(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint of a folder.

    Args:
        folder: of the run. identity: {"recipe": resolved recipe, "data": fingerprint, ...} of the run that wants to go on.

    Raises:
        RecipeError: VP163 nothing to resume, VP164 the run was another one, naming the first difference. LoadError: VP626 damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise RecipeError(
            163, f"nothing to resume in '{folder}'", cause=f"there is no {FILE}", next_step="run without --resume to start"
        )
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] != FORMAT:
            raise ValueError(f"format {state['format']}, this version reads {FORMAT}")
    except Exception as error:
        raise LoadError(
            626,
            f"checkpoint '{path}' cannot be read",
            cause=str(error).splitlines()[0][:200],
            next_step="start again with --force",
        ) from error
    before, now = _flat(state["identity"]), _flat(identity)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise RecipeError(
                164,
                "the run to resume was another one",
                cause=f"{key} was {before.get(key)!r}, now it is {now.get(key)!r}",
                next_step="resume with the same recipe, weights and data, or start again with --force",
            )
    return state


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{name}.{key}" if name else str(key))
    return found
