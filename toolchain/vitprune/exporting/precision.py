"""Before a graph gets its types: which layers stay in FP32 because fp16 could not hold what goes through them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitprune.backends.onnxruntime import make_session
from vitprune.errors import RecipeError
from vitprune.graph import surgery
from vitprune.graph.precision import overflow, passes, stream
from vitprune.graph.reading import Source
from vitprune.recipe import Recipe
from vitprune.support.precision import OVERFLOW

IMAGES = 64
BATCH = 8
Feeds = dict[str, NDArray[Any]]


def settle(
    dense: onnx.ModelProto | Source, recipe: Recipe, has_cls: bool | None, pixels: NDArray[np.float32]
) -> tuple[Recipe, dict[str, float]]:
    """The recipe with the layers that overflow named in precision.keep_fp32.

    Args:
        dense: the dense graph. recipe: what to insert. has_cls: as for `surgery.rewrite`. pixels: [B,C,H,W] to look at, the first 64.

    Returns:
        The recipe (unchanged unless a type in it is fp16), and the largest magnitude seen of every layer added.

    Raises:
        RecipeError: VP114 when every layer would have to stay in FP32, or the half residual stream overflows; otherwise as for `surgery.rewrite`.
    """
    limit = OVERFLOW.get(recipe.precision.floats)
    if limit is None:
        return recipe, {}
    model, plan = surgery.untyped(dense, recipe, has_cls)
    feeds = feeds_of(pixels[:IMAGES], model.graph.input[0].name, recipe.graph.static_batch)
    beyond = overflowing(model, plan, feeds, limit)
    if not beyond:
        return recipe, {}
    if stream.STREAM in beyond:
        raise RecipeError(
            114,
            "the residual stream of this model overflows in fp16",
            cause=f"on the calibration images it reaches {beyond[stream.STREAM]:.3g}, and fp16 ends at 65504",
            next_step="--set precision.residual=fp32, or precision.mode=bf16",
        )
    require_some(beyond, len(set(plan.half_nodes(model).values())))
    return recipe.with_("precision.keep_fp32", [*recipe.precision.keep_fp32, *beyond]), beyond


def feeds_of(pixels: NDArray[np.float32], name: str, static: int | None) -> list[Feeds]:
    """The images in pieces of the graph's batch; the last is filled up."""
    size = static or BATCH
    starts = range(0, len(pixels), size)
    return [{name: pixels[np.minimum(np.arange(start, start + size), len(pixels) - 1)]} for start in starts]


def overflowing(model: onnx.ModelProto, plan: passes.Plan, feeds: Iterable[Feeds], limit: float) -> dict[str, float]:
    """The layers of a half type whose inputs, results or weights pass a limit, and the largest magnitude seen of each.

    Args:
        model: pruned, float32. plan: of its types. feeds: inputs of the graph.
    """
    half = plan.half_nodes(model)
    found = overflow.weight_maxima(model, half)
    probed, outputs = overflow.probed(model, half)
    session, wanted = make_session(probed.SerializeToString(), spin=False), list(outputs)
    for feed in feeds:
        values = dict(zip(wanted, session.run(wanted, feed), strict=True))
        for layer, seen in overflow.largest(outputs, values).items():
            found[layer] = max(found.get(layer, 0.0), seen)
    return {layer: seen for layer, seen in found.items() if not seen <= limit}


def require_some(beyond: dict[str, float], layers: int) -> None:
    """Something must be left for fp16.

    Raises:
        RecipeError: VP114 when all of so many layers overflow.
    """
    if beyond and len(beyond) == layers:
        raise RecipeError(
            114,
            "every layer of this model overflows in fp16",
            cause=f"on the calibration images even the smallest reaches {min(beyond.values()):.3g}",
            next_step="--set precision.mode=bf16, whose range is that of FP32",
        )


def unquantised(recipe: Recipe) -> Recipe:
    """The recipe as it can be read before ranges are known: in fp32 where it asks for int8 or FP8."""
    return recipe.with_("precision.mode", "fp32") if recipe.precision.quantised else recipe


def warnings(beyond: dict[str, float]) -> list[str]:
    """One sentence per layer that was kept in FP32."""
    return [f"{layer} stays in FP32: it reaches {seen:.3g}, and fp16 ends at 65504" for layer, seen in beyond.items()]


def noted(notes: dict[str, Any], beyond: dict[str, float]) -> dict[str, Any]:
    """Notes of an export with what overflowed."""
    if not beyond:
        return notes
    return {
        **notes,
        "precision": {**notes["precision"], "overflow": beyond},
        "warnings": [*notes.get("warnings", []), *warnings(beyond)],
    }
