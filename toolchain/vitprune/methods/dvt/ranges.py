"""Before the members of a cascade get their types: layers that fp16 cannot hold, and the ranges of what is quantised.

Member by member on its float32 graph; what a member hands on is what the next one is looked at with, whether or not an image would
have left before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitprune.backends.onnxruntime import make_session
from vitprune.errors import RecipeError
from vitprune.exporting import precision, ranges
from vitprune.exporting.precision import Feeds
from vitprune.graph.precision import passes
from vitprune.methods.dvt.graphs import untyped_graphs
from vitprune.methods.dvt.keys import EXITS
from vitprune.methods.dvt.layers import all_names, of_member, prefix, together
from vitprune.methods.dvt.reference import Cascade
from vitprune.recipe import PrecisionSection, Recipe
from vitprune.support.precision import OVERFLOW

Images = Callable[[int], NDArray[np.float32]]


def check_early(section: PrecisionSection, depth: int, images: Images | None) -> None:
    """What would be refused later, before anything that takes long.

    Raises:
        RecipeError: VP113 a pattern fits no layer; VP117, VP136, VP127 images; VP129 nothing is left to quantise; VP115 --auto-exclude.
    """
    for key in ("keep_fp32", "exclude"):
        passes.check_patterns(all_names(depth), getattr(section, key), key)
    if not section.quantised:
        return
    if section.auto_exclude:
        raise RecipeError(
            115,
            "precision.auto_exclude is not available for a cascade",
            cause="what a layer costs is measured on the logits of one model; a cascade has three, and the first two feed the next",
            next_step="--set precision.auto_exclude=false, and name layers in precision.exclude (exit2.blocks.0.* is one member's)",
        )
    ranges.images_for(section, quantised_layers(section, depth), images)


def quantised_layers(section: PrecisionSection, depth: int) -> frozenset[str]:
    """Names of all layers that take int8 or FP8, with their exits."""
    members = range(1, EXITS + 1)
    return frozenset(
        f"{prefix(number)}{name}"
        for number in members
        for name in passes.quantised_layers(depth, of_member(section, number, depth))
    )


def settle(
    cascade: Cascade, recipe: Recipe, dense: Sequence[onnx.ModelProto], pixels: NDArray[np.float32], images: Images | None
) -> tuple[Recipe, dict[str, float]]:
    """The recipe with the layers that overflow in keep_fp32, and with ranges and factors of quantised ones.

    Args:
        cascade: in float32. recipe: what to export. dense: of `graphs.dense_graphs`. pixels: [n,C,H,W] to look for overflow on, the
            first 64. images: gives calibration images; None where there are none.

    Returns:
        The recipe, and the largest magnitude seen of every layer added to keep_fp32, by full name.

    Raises:
        RecipeError: VP114 every layer overflows; VP117, VP136, VP127 images; VP129, VP135 ranges.
    """
    depth, static = cascade.shape.depth, recipe.graph.static_batch
    limit = OVERFLOW.get(recipe.precision.floats)
    beyond: dict[str, float] = {}
    if limit is not None:
        looked_at, layers = precision.feeds_of(pixels[: precision.IMAGES], "image", static), 0
        for number, (graph, plan, feeds) in enumerate(_members(cascade, recipe, dense, looked_at), start=1):
            layers += len(set(plan.half_nodes(graph).values()))
            found = precision.overflowing(graph, plan, feeds, limit)
            beyond |= {f"{prefix(number)}{layer}": seen for layer, seen in found.items()}
        precision.require_some(beyond, layers)
        if beyond:
            recipe = recipe.with_("precision.keep_fp32", [*recipe.precision.keep_fp32, *beyond])
    section = recipe.precision
    if not section.quantised:
        return recipe, beyond
    calibration = ranges.images_for(section, quantised_layers(section, depth), images)
    if calibration is None:
        return recipe, beyond
    given = precision.feeds_of(calibration, "image", static)
    parts = [
        ranges.found(graph, plan, of_member(section, number, depth), feeds, prefix(number)) if plan.quantised
        else of_member(section, number, depth)
        for number, (graph, plan, feeds) in enumerate(_members(cascade, recipe, dense, given), start=1)
    ]  # fmt: skip
    return recipe.with_("precision", together(section, parts).brief()), beyond


def _members(
    cascade: Cascade, recipe: Recipe, dense: Sequence[onnx.ModelProto], feeds: list[Feeds]
) -> Iterator[tuple[onnx.ModelProto, passes.Plan, list[Feeds]]]:
    """Every member's float32 graph, the plan of its types, and its inputs: the images, and what the member before made of them."""
    for graph, plan in untyped_graphs(cascade, recipe, dense):
        assert plan is not None
        yield graph, plan, feeds
        feeds = handed_on(graph, feeds)


def handed_on(graph: onnx.ModelProto, feeds: Sequence[Feeds]) -> list[Feeds]:
    """The next member's inputs, piece by piece."""
    names = [value.name for value in graph.graph.output if value.name != "logits"]
    if not names:
        return []
    session: Any = make_session(graph.SerializeToString(), spin=False)
    return [{"image": feed["image"], **dict(zip(names, session.run(names, feed), strict=True))} for feed in feeds]
