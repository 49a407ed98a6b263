"""A dense graph from anywhere, brought into the form that the anatomy and the passes work on.

Node names are made unique (some exporters write none), one output is chosen, the input is checked, and the opset is the recipe's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx
import onnx.version_converter

from vitprune.errors import ExportError, RecipeError
from vitprune.graph import held
from vitprune.graph.normal.idle import take_idle_casts
from vitprune.graph.normal.newer import write_out
from vitprune.graph.normal.operators import expand
from vitprune.graph.normal.operators import opset_of as opset_of
from vitprune.graph.normal.rows import unflatten
from vitprune.graph.normal.safe_softmax import unguard
from vitprune.recipe import Recipe
from vitprune.support.answers import LISTS

OLDEST_IR = 8
NEWEST_OPSET = 20


@dataclass(frozen=True)
class Intake:
    """The prepared model, the recipe with what the graph itself decides (a fixed batch), and notes for the report."""

    model: onnx.ModelProto
    recipe: Recipe
    notes: dict[str, Any]


def take_in(model: onnx.ModelProto, recipe: Recipe) -> Intake:
    """Prepare a dense graph; the model given is not changed.

    Raises:
        ExportError: VP324 opset, VP332 inputs, VP333 outputs, VP334 operators. RecipeError: VP108 the recipe asks for another batch than the graph's.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _name_nodes(copy)
    dropped = _choose_output(copy, recipe.graph.output, several=recipe.output.features)
    _check_input(copy)
    copy, newer = write_out(copy)
    copy, expanded = expand(copy)
    recipe = _settle_opset(copy, recipe)
    copy = upgrade(copy, recipe.graph.opset)
    copy.ir_version = min(max(copy.ir_version, OLDEST_IR), onnx.IR_VERSION)
    recipe = _settle_batch(copy, recipe)
    idle = take_idle_casts(copy)
    copy, parted = unflatten(copy)
    copy, guards = unguard(copy)
    _name_nodes(copy)
    notes = {
        "dropped_outputs": dropped,
        "expanded_operators": newer | expanded,
        "linear_maps_on_tokens_again": parted,
        "guards_of_softmax_taken_away": guards,
        "idle_casts_taken_away": idle,
    }
    return Intake(copy, recipe, {name: value for name, value in notes.items() if value})


def _name_nodes(model: onnx.ModelProto) -> None:
    """Names are keys for the passes, so every node gets one of its own."""
    taken: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.name or node.op_type}/{number}"
        taken.add(node.name)


def _shape(value: onnx.ValueInfoProto) -> str:
    dims = [str(dim.dim_value or dim.dim_param or "?") for dim in value.type.tensor_type.shape.dim]
    return f"{value.name} [{', '.join(dims)}]"


def _choose_output(model: onnx.ModelProto, wanted: str | None, several: bool) -> list[str]:
    """Keep the output that is to be the logits, or of features all of them; returns the names of the others."""
    outputs = list(model.graph.output)
    if several and wanted is None and outputs:
        _check_names(outputs)
        return []
    listed = "; ".join(_shape(value) for value in outputs)
    chosen = [value for value in outputs if value.name == wanted] if wanted is not None else outputs
    if len(chosen) != 1:
        unknown = wanted is not None
        raise ExportError(
            333,
            f"the graph has no output '{wanted}'" if unknown else f"the graph has {len(outputs)} outputs",
            cause=f"its outputs: {listed or 'none'}",
            next_step="--output-name NAME says which one holds the logits (recipe key graph.output)",
        )
    others = [value.name for value in outputs if value is not chosen[0]]
    kept = onnx.ValueInfoProto()
    kept.CopyFrom(chosen[0])
    del model.graph.output[:]
    model.graph.output.append(kept)
    return others


def _check_names(outputs: list[onnx.ValueInfoProto]) -> None:
    """Outputs called like the lists of a pruned graph could not be told from them.

    Raises:
        ExportError: VP333.
    """
    if taken := [value.name for value in outputs if value.name.startswith(LISTS)]:
        raise ExportError(
            333,
            f"an output of the graph is called '{taken[0]}'",
            cause=f"in a pruned graph names that begin with {' or '.join(LISTS)} are lists of patches",
            next_step="export the dense model with other names of its outputs",
        )


def _check_input(model: onnx.ModelProto) -> None:
    """One float32 image input [B,channels,H,W].

    Raises:
        ExportError: VP332.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    problem = ""
    if len(inputs) != 1:
        problem = f"it has {len(inputs)} inputs: {'; '.join(_shape(value) for value in inputs) or 'none'}"
    else:
        tensor = inputs[0].type.tensor_type
        dims = [dim.dim_value for dim in tensor.shape.dim]
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        if tensor.elem_type != onnx.TensorProto.FLOAT:
            problem = f"its input {_shape(inputs[0])} is {kind}"
        elif len(dims) != 4:
            problem = f"its input {_shape(inputs[0])} has {len(dims)} dimensions"
        elif dims[3] in (1, 3, 4) and dims[1] not in (1, 3, 4):
            problem = f"its input {_shape(inputs[0])} has its channels last"
    if problem:
        raise ExportError(
            332,
            "this graph does not take one image tensor",
            cause=f"{problem}; one float32 input [batch, channels, height, width] is needed",
            next_step="export the model itself, without preprocessing and further inputs, in float32",
        )


def _settle_batch(model: onnx.ModelProto, recipe: Recipe) -> Recipe:
    """A fixed batch of the graph goes into the recipe, one of the recipe into a graph whose batch is open."""
    constants = {tensor.name for tensor in model.graph.initializer}
    image = next(value for value in model.graph.input if value.name not in constants)
    fixed, wanted = image.type.tensor_type.shape.dim[0].dim_value, recipe.graph.static_batch
    if fixed > 0:
        if wanted is not None and wanted != fixed:
            raise RecipeError(
                108,
                f"the graph has a fixed batch of {fixed}, the recipe asks for {wanted}",
                cause="a batch that an exporter has baked in cannot be changed",
                next_step=f"--set graph.batch={fixed}, or export the dense model with an open batch",
            )
        return recipe if wanted else recipe.with_("graph.batch", str(fixed))
    if wanted is not None:
        image.type.tensor_type.shape.dim[0].dim_value = wanted
        del model.graph.value_info[:]
    return recipe


def _settle_opset(model: onnx.ModelProto, recipe: Recipe) -> Recipe:
    """A graph newer than the recipe's opset keeps its own, up to the newest that targets take; older ones are converted up."""
    newest = min(opset_of(model), NEWEST_OPSET)
    return recipe if newest <= recipe.graph.opset else recipe.with_("graph.opset", newest)


def upgrade(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same graph at the recipe's opset, older or newer.

    Raises:
        ExportError: VP324 when it cannot be converted.
    """
    current = opset_of(model)
    if current == opset:
        return model
    if current > opset:
        return _relabelled(model, current, opset)
    parked = _park_softmax(model) if current < 13 <= opset else []
    try:
        bare, weights = held.parted(model)
        converted = held.filled(onnx.version_converter.convert_version(bare, opset), weights)
    except Exception as error:
        raise ExportError(
            324,
            f"the graph cannot be converted from opset {current} to {opset}",
            cause=str(error).splitlines()[0][:200],
            next_step=f"export the dense model with opset {opset}"
            + (f", or --set graph.opset={current}" if 17 <= current <= 20 else ""),
        ) from error
    _unpark_softmax(converted, parked)
    return converted


def _relabelled(model: onnx.ModelProto, current: int, opset: int) -> onnx.ModelProto:
    """The same nodes under an older opset, where that opset has them all; what they compute is compared later.

    Raises:
        ExportError: VP324 where it has not.
    """
    older = onnx.ModelProto()
    older.CopyFrom(model)
    del older.opset_import[:]
    older.opset_import.append(onnx.helper.make_opsetid("", opset))
    older.opset_import.extend(entry for entry in model.opset_import if entry.domain not in ("", "ai.onnx"))
    try:
        held.check(held.parted(older)[0], strict_mode=True, check_type=True)
    except Exception as error:
        raise ExportError(
            324,
            f"the graph uses operators of opset {current} that opset {opset} does not have",
            cause=str(error).splitlines()[0][:200],
            next_step=f"export the dense model with opset {opset}"
            + (f", or --set graph.opset={current}" if 17 <= current <= 20 else ""),
        ) from error
    return older


def _park_softmax(model: onnx.ModelProto) -> list[str]:
    """Before opset 13 Softmax flattened its input; over the last axis that is the same, and the converter's Reshapes are not wanted.

    A rank that shape inference leaves open is taken for 4; whether that was right is seen when dense logits are compared.
    """
    parked = []
    shapes = held.inferred(held.parted(model)[0]).graph.value_info
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in shapes}
    for node in model.graph.node:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        if node.op_type == "Softmax" and (axis == -1 or axis == (ranks.get(node.input[0]) or 4) - 1):
            del node.attribute[:]
            node.op_type = "Identity"
            parked.append(node.name)
    return parked


def _unpark_softmax(model: onnx.ModelProto, parked: list[str]) -> None:
    for node in model.graph.node:
        if node.name in parked:
            node.op_type = "Softmax"
            node.attribute.append(onnx.helper.make_attribute("axis", -1))
