"""Weights into a model: names under a prefix, positions of another grid, numbers that are none."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vitprune.errors import ExportError
from vitprune.vit.weights import read_weights

PREFIXES = ("module.", "model.", "backbone.")  # what wraps a model in training code and Lightning
DEPTH = 3


def load_weights(module: Any, path: Path, resample: int | None = None) -> dict[str, Any]:
    """Load a weights file strictly.

    Args:
        module: the model. path: as for `read_weights`. resample: the recipe's model.image_size; with it, positions of another grid
            are resampled as timm does, without it they are refused.

    Returns:
        What was done to the file's tensors: "prefix" taken off, number of tensors "ignored" outside of it, "resampled_to".

    Raises:
        ExportError: VP302 the file, VP303 naming the first difference, VP305 positions of another grid, VP306 weights that are no
            finite real numbers.
    """
    state = read_weights(path)
    facts: dict[str, Any] = {}
    if hasattr(module, "convert_state"):  # a model of ours whose published checkpoints have other names
        state = module.convert_state(_without_common(state))
    own = module.state_dict()
    state, facts = _under_prefix(state, own, path)
    for name, value in own.items():
        if name not in state:
            foreign = any(".encoder.layer." in f".{key}" for key in state)
            advice = "export the Hugging Face model to ONNX and use vitprune rewrite" if foreign else None
            raise _misfit(path, f"it has no '{name}'", advice)
        check_tensor(name, state[name], value, path.name)
    if (positions := _of_another_grid(module, state, own)) is not None:
        state["pos_embed"], changed = _resampled(module, positions, resample, path)
        facts |= changed
    for name, value in own.items():
        if state[name].shape != value.shape:
            raise _misfit(path, f"'{name}' is {tuple(state[name].shape)}, the model wants {tuple(value.shape)}")
    extra = sorted(set(state) - set(own))
    if extra:
        raise _misfit(path, f"it has '{extra[0]}', which the model lacks")
    module.load_state_dict(state)
    return facts


def unwrapped(module: Any) -> Any:
    """The model inside of torch.compile's, DataParallel's and DistributedDataParallel's wrappers; anything else as it is."""
    for _ in range(DEPTH):
        if "_orig_mod" in getattr(module, "_modules", {}):
            module = module._orig_mod
        elif type(module).__name__ in ("DataParallel", "DistributedDataParallel"):
            module = module.module
    return module


def check_module(module: Any, name: str) -> None:
    """Refuse a model whose parameters are not finite float32 numbers.

    Raises:
        ExportError: VP306 naming the first.
    """
    import torch

    for key, value in module.named_parameters():
        if value.dtype != torch.float32:
            raise _wrong(name, f"'{key}' is {_kind(value)}", "model.float(), so that reference and graph compute the same")
    for key, value in module.state_dict().items():
        if value.is_floating_point() and (bad := _bad(value)):
            raise _wrong(name, f"'{key}' {bad}", "use an earlier checkpoint: training has diverged")


def _misfit(path: Path, cause: str, advice: str | None = None) -> ExportError:
    return ExportError(
        303, f"'{path.name}' does not fit the model", cause=cause,
        next_step=advice or "check model.name and model.args against the checkpoint",
    )  # fmt: skip


def _wrong(name: str, cause: str, next_step: str) -> ExportError:
    return ExportError(306, f"weights of '{name}' are not finite real numbers", cause=cause, next_step=next_step)


def _kind(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.")


def _bad(value: Any) -> str:
    finite = value.isfinite()
    return "" if bool(finite.all()) else f"holds {int((~finite).sum())} NaN or infinite of {value.numel()} values"


def check_tensor(name: str, value: Any, wanted: Any, file: str) -> None:
    """Refuse what loading would cast (integers), cut (imaginary parts) or take as it is (NaN).

    Args:
        name: of the tensor. value: of the file. wanted: the model's own. file: its name.

    Raises:
        ExportError: VP306.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        raise _wrong(file, f"'{name}' is a {type(value).__name__}, not a tensor", "save the model's state_dict()")
    if wanted.is_floating_point():
        if not value.is_floating_point():
            raise _wrong(
                file, f"'{name}' is {_kind(value)}, the model has floating-point weights", "save them unquantised, as float32"
            )
        if bad := _bad(value):
            raise _wrong(file, f"'{name}' {bad}", "use an earlier checkpoint: training has diverged")


def _without_common(state: dict[str, Any]) -> dict[str, Any]:
    for _ in range(DEPTH):
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _under_prefix(state: dict[str, Any], own: Iterable[str], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors under the one prefix that holds all of the model's; as they are where there is none."""
    wanted = set(own)
    prefixes = [""]
    for _ in range(DEPTH):
        prefixes += [f"{one}{two}" for one in prefixes for two in PREFIXES if any(name.startswith(one + two) for name in state)]
        prefixes = list(dict.fromkeys(prefixes))
    held = {prefix: sum(f"{prefix}{name}" in state for name in wanted) for prefix in prefixes}
    complete = [prefix for prefix in prefixes if held[prefix] == len(wanted)]
    if "" not in complete and len(complete) > 1:
        raise _misfit(path, f"it holds the model under '{complete[0]}' and under '{complete[1]}'", "save the one that is meant")
    best = "" if "" in complete else max(prefixes, key=lambda prefix: held[prefix])
    if not best:
        return state, {}
    found = {name.removeprefix(best): value for name, value in state.items() if name.startswith(best)}
    return found, {"prefix": best, "ignored": len(state) - len(found)}


def _of_another_grid(module: Any, state: dict[str, Any], own: dict[str, Any]) -> Any:
    """The file's positions [1,N,C], if the model's are of as many channels and another N, else None."""
    if "pos_embed" not in own or not hasattr(module, "patch_embed"):
        return None
    theirs, ours = state["pos_embed"], own["pos_embed"]
    if theirs.ndim != 3 or ours.ndim != 3 or theirs.shape[1] == ours.shape[1] or theirs.shape[2] != ours.shape[2]:
        return None
    return theirs


def _resampled(module: Any, positions: Any, resample: int | None, path: Path) -> tuple[Any, dict[str, Any]]:
    prefix = 0 if getattr(module, "no_embed_class", False) else int(module.num_prefix_tokens)
    rows, columns = module.patch_embed.grid_size
    side = math.isqrt(max(0, positions.shape[1] - prefix))
    patch = int(module.patch_embed.patch_size[0])
    if side * side + prefix != positions.shape[1]:
        raise ExportError(
            305, f"positions of '{path.name}' do not fit the model",
            cause=f"it has {positions.shape[1]}, of which {prefix} before the patches; the rest is no square grid",
            next_step="check model.name and model.args against the checkpoint",
        )  # fmt: skip
    if resample is None:
        raise ExportError(
            305, f"positions of '{path.name}' are of another grid",
            cause=f"it was trained on {side} x {side} patches ({side * patch} pixels), the model has {rows} x {columns}",
            next_step=f"--set model.image_size={side * patch} to use it as it is, or --set model.image_size={rows * patch} to resample its positions (bicubic, as timm does)",
        )  # fmt: skip
    from timm.layers import resample_abs_pos_embed

    made = resample_abs_pos_embed(positions, new_size=[rows, columns], old_size=[side, side], num_prefix_tokens=prefix)
    return made, {"resampled_to": resample}
