"""Dense graphs of the members with reuse inserted by the graph pass."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from vitprune import methods
from vitprune.exporting.dense import dense_onnx
from vitprune.graph.anatomy.find import find
from vitprune.graph.passes.base import Surgery
from vitprune.graph.precision import passes as precision
from vitprune.graph.surgery import finish, working_copy
from vitprune.methods.base import keys_of
from vitprune.methods.dvt import surgery as reuse
from vitprune.methods.dvt.keys import EXITS, Params
from vitprune.methods.dvt.members import dense_member, weights_of
from vitprune.methods.dvt.reference import Cascade
from vitprune.recipe import Recipe
from vitprune.recipe_parts.precision import require_floats


def member_graphs(cascade: Cascade, recipe: Recipe, report: Callable[[str], None] = lambda text: None) -> list[onnx.ModelProto]:
    """The three graphs: image -> logits, z1, r1; image, z1, r1 -> logits, z2, r2; image, z2, r2 -> logits.

    Raises:
        ExportError: VP304 torch cannot export a member, VP32x the graph is not understood.
    """
    require_floats(recipe.precision, "a cascade")
    shape, grids, graphs = cascade.shape, keys_of(recipe.prune, Params).grids, []
    for number, grid in enumerate(grids):
        report(f"exporting member {number + 1} of {EXITS}")
        weights = weights_of(cascade, number)
        dense = dense_onnx(dense_member(shape, grid, weights), (shape.channels, shape.image, shape.image), recipe)
        report(f"inserting reuse into member {number + 1}")
        surgery = Surgery(working_copy(dense), find(dense), recipe, methods.get("dvt"), [])
        taken = reuse.Reuse(weights, grids[number - 1], grid, shape.eps) if number else None
        reuse.DvtSurgery(number + 1, taken, hands_on=number + 1 < EXITS).run(surgery)
        types = precision.plan(surgery, recipe.precision)
        graphs.append(finish(surgery) if types is None else precision.apply(finish(surgery), types))
    return graphs
