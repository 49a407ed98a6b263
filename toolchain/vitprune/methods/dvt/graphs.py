"""Dense graphs of the members with reuse inserted by the graph pass, and their types."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx

from vitprune import methods
from vitprune.exporting.dense import dense_onnx
from vitprune.graph.anatomy.find import find
from vitprune.graph.passes.base import Surgery
from vitprune.graph.precision import passes as precision
from vitprune.graph.precision.passes import Plan
from vitprune.graph.surgery import finish, working_copy
from vitprune.methods.base import keys_of
from vitprune.methods.dvt import surgery as reuse
from vitprune.methods.dvt.keys import EXITS, Params
from vitprune.methods.dvt.layers import of_member
from vitprune.methods.dvt.members import dense_member, weights_of
from vitprune.methods.dvt.reference import Cascade
from vitprune.recipe import Recipe

Report = Callable[[str], None]


def dense_graphs(cascade: Cascade, recipe: Recipe, report: Report = lambda text: None) -> list[onnx.ModelProto]:
    """The members as plain ViTs.

    Raises:
        ExportError: VP304 torch cannot export a member.
    """
    shape, found = cascade.shape, []
    for number, grid in enumerate(keys_of(recipe.prune, Params).grids):
        report(f"exporting member {number + 1} of {EXITS}")
        member = dense_member(shape, grid, weights_of(cascade, number))
        found.append(dense_onnx(member, (shape.channels, shape.image, shape.image), recipe))
    return found


def untyped_graphs(
    cascade: Cascade, recipe: Recipe, dense: Sequence[onnx.ModelProto]
) -> list[tuple[onnx.ModelProto, Plan | None]]:
    """The three graphs in float32, and the plans of their types (None for float32).

    Raises:
        ExportError: VP32x a graph is not understood. RecipeError: VP113 a pattern fits no layer.
    """
    grids, found = keys_of(recipe.prune, Params).grids, []
    for number, graph in enumerate(dense):
        surgery = Surgery(working_copy(graph), find(graph), recipe, methods.get("dvt"), [])
        taken = reuse.Reuse(weights_of(cascade, number), grids[number - 1], grids[number], cascade.shape.eps) if number else None
        reuse.DvtSurgery(number + 1, taken, hands_on=number + 1 < EXITS).run(surgery)
        plan = precision.plan(surgery, of_member(recipe.precision, number + 1, cascade.shape.depth))
        found.append((finish(surgery), plan))
    return found


def member_graphs(
    cascade: Cascade, recipe: Recipe, report: Report = lambda text: None, dense: Sequence[onnx.ModelProto] | None = None
) -> list[onnx.ModelProto]:
    """The three graphs: image -> logits, z1, r1; image, z1, r1 -> logits, z2, r2; image, z2, r2 -> logits.

    Args:
        dense: of `dense_graphs`, where they have been made.

    Raises:
        As for `dense_graphs`, `untyped_graphs` and `graph.precision.passes.apply`.
    """
    plain = dense_graphs(cascade, recipe, report) if dense is None else dense
    report("inserting reuse")
    return [graph if plan is None else precision.apply(graph, plan) for graph, plan in untyped_graphs(cascade, recipe, plain)]
