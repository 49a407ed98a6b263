"""What tests of int8 and FP8 share: the tiny model, its dense graph, images, and recipes with ranges."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from test_precision import PRUNE, dense, model, pixels

from vitprune.exporting import ranges
from vitprune.recipe import Recipe

METHODS = ("topk", "ats", "tome", "ward_merge", "evit")


def rules(method: str = "topk", mode: str = "int8", **precision: Any) -> Recipe:
    return ranges.with_opset(
        Recipe.load({"prune": {"method": method, **PRUNE[method]}, "precision": {"mode": mode, **precision}})
    )


def calibrated(recipe: Recipe, graph: Any = None, images: np.ndarray | None = None) -> Recipe:
    given = pixels(32, 7) if images is None else images
    return ranges.settle(dense() if graph is None else graph, recipe, True, lambda count: given[:count])


@cache
def settled(method: str = "topk", mode: str = "int8", rest: str = "fp16", smooth: bool = True) -> Recipe:
    return calibrated(rules(method, mode, rest=rest, smooth=smooth))


def outlier(factor: float = 200.0) -> Any:
    """The tiny model with one channel of one LayerNorm's gain times `factor`, which the next weights hardly read.

    So are the outliers of trained models: large, and of little weight each.
    """
    import copy

    spoilt = copy.deepcopy(model())
    spoilt.blocks[1].norm2.weight.data[5] *= factor
    spoilt.blocks[1].mlp.fc1.weight.data[:, 5] /= factor
    return spoilt
