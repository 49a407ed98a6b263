"""The whole cascade as one graph for batch 1: nested If (methods.md §4.8).

Member 1 always runs. An If over its confidence either returns its logits or runs member 2, whose branch holds the If of member 3.
`If` is scalar, so the batch is one image; for batches the host runs the cascade.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from vitprune.errors import ExportError

NAME = "cascade.onnx"


def single_graph(members: Sequence[ModelProto], thresholds: Sequence[float | None]) -> ModelProto:
    """Image [1,C,H,W] -> logits [1,classes], exit int64 [1] (counted from 1).

    Args:
        members: the graphs of `member_graphs`. thresholds: of all exits but the last; null = that exit never answers.

    Raises:
        ExportError: VP325 when the result is not valid ONNX.
    """
    first = members[0].graph
    classes = first.output[0].type.tensor_type.shape.dim[1].dim_value
    image = [1, *(dim.dim_value for dim in first.input[0].type.tensor_type.shape.dim[1:])]
    graph = _stage(members, thresholds, 0, classes)
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, image))
    model = helper.make_model(
        graph, opset_imports=list(members[0].opset_import), ir_version=members[0].ir_version, producer_name="vitprune"
    )
    try:
        onnx.checker.check_model(model, full_check=False)
    except Exception as error:
        raise ExportError(325, "the graph of the whole cascade is not valid ONNX", cause=str(error).splitlines()[0]) from error
    return model


def _stage(members: Sequence[ModelProto], thresholds: Sequence[float | None], number: int, classes: int) -> GraphProto:
    """Member `number` (0-based) and everything behind it as a graph that reads image, z and r from outside."""
    last = number + 1 == len(members)
    scope = f"exit{number + 1}"
    body = _renamed(members[number].graph, scope, number)
    nodes, constants = list(body.node), list(body.initializer)
    logits, answer, which = f"{scope}/logits", f"{scope}/answer", f"{scope}/number"
    if number == 0:
        answer, which = "logits", "exit"
    if last:
        nodes.append(helper.make_node("Identity", [logits], [answer], name=f"{scope}/answered"))
        nodes.append(_constant(which, [number + 1]))
    else:
        nodes += _decision(scope, logits, thresholds[number])
        constants.append(numpy_helper.from_array(np.asarray([-1], np.int64), f"{scope}/axes"))
        here = _answered(scope, logits, number, classes)
        behind = _stage(members, thresholds, number + 1, classes)
        nodes.append(
            helper.make_node("If", [f"{scope}/fires"], [answer, which], name=f"{scope}/if", then_branch=here, else_branch=behind)
        )
    return helper.make_graph(nodes, scope, [], _outputs(answer, which, classes), initializer=constants)


def _decision(scope: str, logits: str, threshold: float | None) -> list[NodeProto]:
    """Scalar condition: the largest softmax probability reaches the threshold, in FP32; a null one is out of reach."""
    limit = numpy_helper.from_array(np.asarray(2.0 if threshold is None else threshold, np.float32), f"{scope}/threshold")
    return [
        helper.make_node("Softmax", [logits], [f"{scope}/softmax"], name=f"{scope}/softmax", axis=-1),
        helper.make_node("ReduceMax", [f"{scope}/softmax", f"{scope}/axes"], [f"{scope}/confidence"], name=f"{scope}/confidence", keepdims=1),
        helper.make_node("Constant", [], [f"{scope}/limit"], name=f"{scope}/limit", value=limit),
        helper.make_node("GreaterOrEqual", [f"{scope}/confidence", f"{scope}/limit"], [f"{scope}/fires"], name=f"{scope}/fires"),
    ]  # fmt: skip


def _answered(scope: str, logits: str, number: int, classes: int) -> GraphProto:
    """The branch taken when an exit answers: its logits and number."""
    answer, which = f"{scope}/taken/logits", f"{scope}/taken/number"
    nodes = [helper.make_node("Identity", [logits], [answer], name=f"{scope}/taken"), _constant(which, [number + 1])]
    return helper.make_graph(nodes, f"{scope}/taken", [], _outputs(answer, which, classes))


def _constant(name: str, value: list[int]) -> NodeProto:
    return helper.make_node("Constant", [], [name], name=name, value=numpy_helper.from_array(np.asarray(value, np.int64), name))


def _outputs(answer: str, which: str, classes: int) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(answer, TensorProto.FLOAT, [1, classes]),
        helper.make_tensor_value_info(which, TensorProto.INT64, [1]),
    ]


def _renamed(graph: GraphProto, scope: str, number: int) -> GraphProto:
    """A copy whose names carry the scope; image and the tensors handed from member to member keep theirs."""
    handed = {"image", *(f"{kind}{k}" for kind in "zr" for k in (number, number + 1))}

    def name(old: str) -> str:
        return old if not old or old in handed else f"{scope}/{old}"

    copy = GraphProto()
    copy.CopyFrom(graph)
    for node in copy.node:
        if any(attribute.HasField("g") for attribute in node.attribute):
            raise ExportError(325, f"node '{node.name}' holds a graph of its own", cause="members are plain graphs")
        node.name = f"{scope}/{node.name}"
        node.input[:] = [name(value) for value in node.input]
        node.output[:] = [name(value) for value in node.output]
    for tensor in copy.initializer:
        tensor.name = name(tensor.name)
    return copy
