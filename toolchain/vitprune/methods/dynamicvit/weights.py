"""Weights of DynamicViT's score predictors: from a checkpoint, or untrained ones for smoke tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune.errors import RecipeError
from vitprune.methods.base import Site
from vitprune.methods.dynamicvit.keys import DynamicVitOptions, Params
from vitprune.support.resources import located

UNTRAINED = "random"
Weights = dict[str, NDArray[np.float32]]


def shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one predictor for tokens of a width; names as in the published checkpoints."""
    half, quarter = width // 2, width // 4
    sizes = {"in_conv.1": (width, width), "out_conv.0": (half, width), "out_conv.2": (quarter, half), "out_conv.4": (2, quarter)}
    found: dict[str, tuple[int, ...]] = {"in_conv.0.weight": (width,), "in_conv.0.bias": (width,)}
    for name, size in sizes.items():
        found |= {f"{name}.weight": size, f"{name}.bias": size[:1]}
    return found


def load(params: Params, sites: Sequence[Site[DynamicVitOptions]]) -> list[Weights]:
    """One set of weights per site.

    Args:
        params: recipe keys `predictor` and `predictor_seed`. sites: with their token width.

    Raises:
        RecipeError: VP124 no predictor given, VP125 it cannot be read, VP126 it does not fit the model.
    """
    if params.predictor is None:
        raise RecipeError(
            124,
            "dynamicvit needs a trained predictor",
            cause="prune.predictor is not set, and DynamicViT ranks patches by a small trained network",
            next_step="--set prune.predictor=checkpoint.pth (or =random for a smoke test with untrained weights)",
        )
    if params.predictor == UNTRAINED:
        return [_untrained(site.options.width, params.predictor_seed, stage) for stage, site in enumerate(sites)]
    tensors = _read(located(params.predictor))
    return [_fitting(tensors, params.predictor, site) for site in sites]


def warning(params: Params) -> str:
    """What a user must know about the predictor, or ""."""
    if params.predictor != UNTRAINED:
        return ""
    return (
        "UNTRAINED PREDICTOR: prune.predictor is 'random', so which patches are kept means nothing; use this for smoke tests only"
    )


def _untrained(width: int, seed: int, stage: int) -> Weights:
    """Normal weights scaled by fan-in, plain LayerNorm, zero biases; the same on every machine."""
    generator = np.random.default_rng([seed, stage])
    weights: Weights = {}
    for name, shape in shapes(width).items():
        if len(shape) == 2:
            weights[name] = (generator.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
        else:
            weights[name] = np.full(shape, float(name == "in_conv.0.weight"), np.float32)
    return weights


def _read(path: Path) -> Mapping[str, Any]:
    """Tensors of a checkpoint by name.

    Raises:
        RecipeError: VP125.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            found: Mapping[str, Any] = load_file(path)
            return found
        import torch

        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling, file formats and missing packages fail in many ways
        raise RecipeError(
            125,
            f"predictor checkpoint '{path}' cannot be read",
            cause=str(error).splitlines()[0] if str(error) else type(error).__name__,
            next_step="give a .pth or .safetensors file with score_predictor.<i>.* tensors",
        ) from error
    inner: Any = data.get("model", data.get("state_dict", data)) if isinstance(data, dict) else None
    if not isinstance(inner, dict):
        inner = {}
    return {name: value.float().numpy() for name, value in inner.items() if isinstance(value, torch.Tensor)}


def _fitting(tensors: Mapping[str, Any], source: str, site: Site[DynamicVitOptions]) -> Weights:
    """The tensors of one stage, checked by name and shape.

    Raises:
        RecipeError: VP126.
    """
    head, weights = f"score_predictor.{site.options.stage}.", {}
    for name, shape in shapes(site.options.width).items():
        found = tensors.get(head + name)
        if found is None or tuple(found.shape) != shape:
            has = "is missing" if found is None else f"has shape {list(found.shape)}"
            raise RecipeError(
                126,
                f"predictor '{source}' does not fit stage {site.block}",
                cause=f"{head}{name} {has}, expected {list(shape)} for tokens of width {site.options.width}",
                next_step="use the predictor trained for this model and these stages",
            )
        if not np.isfinite(found).all():
            raise RecipeError(
                126,
                f"predictor '{source}' does not fit stage {site.block}",
                cause=f"{head}{name} holds NaN or infinite values",
                next_step="use an earlier checkpoint: training has diverged",
            )
        weights[name] = np.ascontiguousarray(found, dtype=np.float32)
    return weights
