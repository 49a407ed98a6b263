"""Dense ViT graph + recipe -> token-pruned graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx

from vitprune import methods
from vitprune.errors import ExportError, RecipeError
from vitprune.graph import families, held, outlines, ragged
from vitprune.graph.anatomy.feed_forward import not_understood
from vitprune.graph.anatomy.find import Anatomy
from vitprune.graph.families.base import Family
from vitprune.graph.passes.base import GraphPass, Surgery, run_all
from vitprune.graph.precision import audit
from vitprune.graph.precision import passes as precision
from vitprune.graph.reading import Source, source_of
from vitprune.graph.sorting import toposort
from vitprune.graph.types import Graph
from vitprune.methods.base import Geometry, Method
from vitprune.ops.token_sample import DOMAIN
from vitprune.recipe import Recipe

FORBIDDEN = {"NonZero", "Compress", "Unique", "Loop"}
MAX_IR = 10


def geometry(anatomy: Anatomy) -> Geometry:
    """Sizes of the model a graph belongs to."""
    block = anatomy.blocks[0]
    return Geometry(
        depth=len(anatomy.blocks), patches=anatomy.patches, prefix=anatomy.prefix, width=anatomy.width, heads=block.heads,
        mlp_hidden=block.mlp_hidden, embed_macs=anatomy.embed_macs, classes=anatomy.classes, has_cls=anatomy.prefix > 0 and anatomy.reads_cls,
        keys=anatomy.keys,
    )  # fmt: skip


def rewrite(
    model: onnx.ModelProto | Source, recipe: Recipe, has_cls: bool | None = None
) -> tuple[onnx.ModelProto, Anatomy, dict[str, Any]]:
    """Insert the recipe's method into a dense graph.

    Args:
        model: dense ViT; it is not changed. A `Source` is read once for all that is done with it.
        recipe: what to insert.
        has_cls: whether prefix token 0 is a class token, where known; else read off the head.

    Returns:
        The pruned model, the anatomy of the dense one and notes for the report.

    Raises:
        ExportError: VP32x when the graph is not understood; VP312 without a CLS token for a method that needs one.
        RecipeError: VP144 when the method has no pass for the graph's family, VP11x when it does not fit the model.
    """
    operated, plan, notes = _operated(model, recipe, has_cls)
    finished = finish(operated)
    if plan is not None:
        finished = precision.apply(finished, plan)
        notes["precision"] = audit.report(finished, plan.mode, plan.kept)
    return finished, operated.anatomy, notes


def untyped(
    model: onnx.ModelProto | Source, recipe: Recipe, has_cls: bool | None = None
) -> tuple[onnx.ModelProto, precision.Plan]:
    """The pruned model before it gets the types of its recipe (which asks for a half type), and the plan of them.

    Raises:
        As for `rewrite`.
    """
    operated, plan, _ = _operated(model, recipe, has_cls)
    assert plan is not None
    return finish(operated), plan


def _operated(
    model: onnx.ModelProto | Source, recipe: Recipe, has_cls: bool | None
) -> tuple[Surgery, precision.Plan | None, dict[str, Any]]:
    """The surgery with all passes run, the plan of its types and notes for the report."""
    source = source_of(model)
    family = source.family(recipe)
    precision.require_available(recipe.precision, family.name, family.blocks)
    if recipe.output.features and recipe.precision.quantised:
        raise RecipeError(
            115,
            f"features are not available in {recipe.precision.mode}",
            cause="what one step of the quantisation may change is defined for logits",
            next_step="--set precision.mode=fp16, or --set output.kind=logits",
        )
    read = source.read(recipe)
    recipe, anatomy, method = read.recipe, read.anatomy, methods.get(recipe.prune.method)
    if recipe.precision.mode != "fp32" and any(getattr(block, "beside", None) for block in anatomy.blocks):
        raise not_understood(0, "its MLP stands beside its attention, and one map makes what both read")
    if has_cls is not None:
        anatomy = replace(anatomy, reads_cls=has_cls)
    sizes = geometry(anatomy)
    if method.scores_by_cls(recipe.prune) and not sizes.has_cls:
        raise methods.needs_a_cls_token(
            method.name,
            "this graph has no class token that its head reads"
            if not anatomy.prefix
            else "the head of this graph does not read token 0",
        )
    sites = method.sites(recipe.prune, sizes)
    if recipe.output.features:
        methods.require_places(method, recipe.output.fill, sites)
    surgery = Surgery(working_copy(read.model), anatomy, recipe, method, sites, spill=source.spill)
    ran = run_all(passes(method, family, recipe.output.features), surgery)
    plan = precision.plan(surgery, recipe.precision)
    return surgery, plan, {"passes": ran, **read.notes, **surgery.notes}


def passes(method: Method, family: Family, features: bool = False) -> list[GraphPass]:
    """All that rewrites a dense graph, in order; what concerns the finished graph, such as its types, follows the outputs."""
    return [_pass_of(method, family), *(following() for following in (family.dense_passes if features else family.passes))]


def canonical(model: onnx.ModelProto | Source, recipe: Recipe) -> onnx.ModelProto:
    """The dense graph with every block in canonical form and nothing pruned; it must compute what the dense graph computes.

    Raises:
        ExportError: VP32x when the graph is not understood. RecipeError: VP144 when the method has no pass for its family.
    """
    return finish(_canonical(model, recipe))


def dense(model: onnx.ModelProto | Source, recipe: Recipe) -> onnx.ModelProto:
    """The canonical graph in the types of the recipe: what a pruned graph is compared with for its speed.

    Raises:
        As for `canonical`; RecipeError: VP11x the types do not fit.
    """
    surgery = _canonical(model, recipe)
    plan = precision.plan(surgery, recipe.precision)
    finished = finish(surgery)
    return finished if plan is None else precision.apply(finished, plan)


def _canonical(model: onnx.ModelProto | Source, recipe: Recipe) -> Surgery:
    source = source_of(model)
    family, method = source.family(recipe), methods.get(recipe.prune.method)
    _pass_of(method, family)
    precision.require_available(recipe.precision, family.name, family.blocks)
    read = source.read(recipe)
    surgery = Surgery(working_copy(read.model), read.anatomy, read.recipe, method, [], spill=source.spill)
    family.canonical(surgery)
    return surgery


def is_plain(model: onnx.ModelProto) -> bool:
    """Whether a graph is a plain ViT, not one of another family."""
    return families.of(model).name == "ViT"


def _pass_of(method: Method, family: Family) -> GraphPass:
    """A method's pass for a family.

    Raises:
        RecipeError: VP144 when it has none.
    """
    if family.name not in method.families:
        able = [name for name in methods.names() if family.name in methods.get(name).families]
        raise RecipeError(
            144,
            f"{method.name} is not available for {family.name}",
            cause=f"only {', '.join(able)} has a definition for {family.blocks}",
            next_step=f"--set prune.method={able[0]}",
        )
    return method.surgery_for(family.name)()


def working_copy(model: onnx.ModelProto) -> Graph:
    """A graph to change, without the shapes that a rewrite makes wrong."""
    bare, weights = held.parted(model)
    del bare.graph.value_info[:]
    for output in bare.graph.output:
        for dim in list(output.type.tensor_type.shape.dim)[1:]:
            if dim.dim_value <= 0:
                dim.Clear()
    return held.attached(bare, weights)


def finish(surgery: Surgery) -> onnx.ModelProto:
    """Export, attach functions, check.

    Raises:
        ExportError: VP325 when the result is not valid ONNX or holds an operator that runtimes refuse.
    """
    opset = surgery.graph.opset
    surgery.graph.cleanup(remove_unused_graph_inputs=False)
    toposort(surgery.graph)
    result, weights = held.exported(surgery.graph)
    del result.opset_import[:]
    result.opset_import.append(onnx.helper.make_opsetid("", opset))
    if surgery.functions:
        result.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
        result.functions.extend(surgery.functions.values())
    result.ir_version = min(MAX_IR, max(result.ir_version, 8))
    result.producer_name = "vitprune"
    biased = any(getattr(block, "position_bias", None) is not None for block in surgery.anatomy.blocks)
    outlines.store(result, [] if biased else surgery.outlines)  # operators of whole sites know no biases of positions
    ragged.store(result, surgery.anatomy.prefix, surgery.anatomy.blocks[0].x, surgery.ragged)
    refused = forbidden(result)
    if refused:
        raise ExportError(
            325,
            f"the rewritten graph holds {refused[0]}",
            cause="builders for edge targets refuse this operator",
            next_step="export the dense model without it",
        )
    try:
        held.check(result)
    except Exception as error:
        raise ExportError(325, "the rewritten graph is not valid ONNX", cause=str(error).splitlines()[0]) from error
    return held.filled(result, weights, surgery.spill)


def forbidden(model: onnx.ModelProto) -> list[str]:
    """Operators in the graph or its functions that TensorRT parsers refuse."""
    nodes = [*model.graph.node, *(node for body in model.functions for node in body.node)]
    found = [node.op_type for node in nodes if node.op_type in FORBIDDEN]
    for node in nodes:
        reduction = next((a.s.decode() for a in node.attribute if a.name == "reduction"), "none")
        if node.op_type.startswith("Scatter") and reduction != "none":
            found.append(f"{node.op_type}(reduction={reduction})")
    return found
