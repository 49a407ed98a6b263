"""Weights files: which file is meant, and the tensors in it, read without running what is stored."""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import re
from pathlib import Path
from typing import Any

from vitprune.errors import ExportError
from vitprune.support.hashing import sha256_of
from vitprune.support.resources import located

INDEX = ".index.json"
IN_FOLDERS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # of timm, Lightning and DeiT; averaged weights first
# What published checkpoints hold beside tensors: DeiT's arguments. Both are made from plain data and run nothing.
ALLOWED: list[Any] = [argparse.Namespace, (pathlib.PosixPath, "pathlib.PosixPath")]


def weights_path(text: str) -> Path:
    """Resolve a weights entry: a file, a folder with one, or "shipped:" and a file that comes with vitprune.

    Raises:
        ExportError: VP302 a folder that does not tell which of its files is meant.
    """
    path = located(text)
    return _in_folder(path) if text and path.is_dir() else path


def _in_folder(folder: Path) -> Path:
    known = [folder / name for name in IN_FOLDERS if (folder / name).is_file()]
    others = sorted(entry for entry in folder.iterdir() if entry.suffix in SUFFIXES and entry.is_file())
    if known or len(others) == 1:
        return (known or others)[0]
    cause = f"it holds {', '.join(entry.name for entry in others[:5])} and no index" if others else "it holds no weights"
    raise ExportError(
        302, f"folder '{folder}' does not tell which weights are meant", cause=cause, next_step=f"name a file: {folder / 'FILE'}"
    )


def shards(path: Path) -> list[Path]:
    """The files that hold the weights: the file itself, or what an index in Hugging Face's format names, beside it."""
    if path.suffix != ".json":
        return [path]
    names = json.loads(path.read_text())["weight_map"].values()
    return [path.parent / name for name in sorted({Path(name).name for name in names})]


def weights_digest(path: Path) -> str:
    """sha256 of a weights file; of an index, that of the digests of its shards; empty when one is missing."""
    try:
        parts = shards(path)
        return sha256_of(path) if parts == [path] else hashlib.sha256("".join(map(sha256_of, parts)).encode()).hexdigest()
    except (OSError, ValueError, KeyError):
        return ""


def read_weights(path: Path) -> dict[str, Any]:
    """Tensors by name of a .safetensors or PyTorch file, or of the shards that an index names.

    A checkpoint of timm, Lightning or DeiT ({"model": ..., "args": Namespace}) gives the weights in it. `module.` (of data parallel
    training) and `_orig_mod.` (of torch.compile) are taken off the names.

    Raises:
        ExportError: VP302 missing, unreadable, not a state dict, or an object that could run code.
    """
    if not path.is_file():
        raise ExportError(
            302, f"weights file '{path}' not found", cause="no such file", next_step="check --weights or model.weights"
        )
    try:
        state = {name: value for part in shards(path) for name, value in _tensors(part).items()}
        if path.suffix == ".json" and (absent := set(json.loads(path.read_text())["weight_map"]) - set(state)):
            raise ValueError(f"the index names '{min(absent)}', which no shard holds")
    except ExportError:
        raise
    except Exception as error:
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ExportError(
            302,
            f"weights file '{path}' cannot be read",
            cause=f"it holds a {unsafe[1]}, and objects are not read: they can run code"
            if unsafe
            else (str(error).splitlines() or [type(error).__name__])[0],
            next_step="save the tensors alone: torch.save(model.state_dict(), FILE)"
            if unsafe
            else "give a .safetensors or .pth state dict",
        ) from error
    return {name.removeprefix("module.").replace("_orig_mod.", ""): value for name, value in state.items()}


def _tensors(path: Path) -> dict[str, Any]:
    """The state dict of one file."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(str(path)))
    import torch

    with torch.serialization.safe_globals(ALLOWED):
        state = torch.load(path, map_location="cpu", weights_only=True)
    for key in CONTAINERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise ExportError(
            302,
            f"weights file '{path}' holds no state dict",
            cause=f"found {type(state).__name__}"
            + (f" with {', '.join(map(str, list(state)[:4]))}" if isinstance(state, dict) else ""),
            next_step="give a .safetensors or .pth state dict",
        )
    return {str(name): value for name, value in state.items()}
