"""The graph for TensorRT with plugin nodes in half types: every site is one node, in the graph's types, and says what the plain nodes say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from test_native_sites import ATS, CASES, SIDE, assert_alike, dense, recipe, session  # noqa: F401
from test_plugin_sites import DROPPING, attributes_of, sites_of, spread
from test_tensorrt_glue import shapes

from helpers import images
from vitprune.exporting import ranges
from vitprune.graph import surgery
from vitprune.graph.lowering.onnxruntime import specialise
from vitprune.graph.lowering.plugin_sites import with_plugin_sites
from vitprune.graph.lowering.rounding import emulated
from vitprune.graph.outlines import stored
from vitprune.support.onnx_types import HALF

NUMBERS = {
    TensorProto.FLOAT: 0,
    TensorProto.FLOAT16: 1,
    TensorProto.INT32: 3,
    TensorProto.BOOL: 4,
    TensorProto.BFLOAT16: 7,
    TensorProto.INT64: 8,
}  # nvinfer1::DataType
PRECISIONS = {
    "fp16": {"mode": "fp16"},
    "bf16": {"mode": "bf16"},
    "fp16, residual": {"mode": "fp16", "residual": "half", "io": "half"},
    "bf16, residual": {"mode": "bf16", "residual": "half"},
}
SHAPES = {"fp16": "dynamic", "bf16": "padded", "fp16, residual": "padded", "bf16, residual": "dynamic"}


def widened(model: onnx.ModelProto) -> dict[str, dict[str, int]]:
    """Casts around the plugin nodes of a graph, which are then float32; the types by role that nodes had, by name."""
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    known = {value.name: value.type.tensor_type.elem_type for value in values}
    known |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    found: dict[str, dict[str, int]] = {}
    for node in model.graph.node:
        after = []
        if node.op_type == "PruneSite":
            attributes = attributes_of(node)
            roles = [*attributes["inputs"].split(","), *attributes["outputs"].split(",")]
            kinds = dict(zip(roles, [known[name] for name in (*node.input, *node.output)], strict=True))
            found[node.name] = kinds
            for position, name in enumerate(node.input):
                if kinds[roles[position]] in HALF:
                    node.input[position] = f"{node.name}/{name}/wide"
                    nodes.append(helper.make_node("Cast", [name], [node.input[position]], to=TensorProto.FLOAT))
            for position, name in enumerate(node.output):
                if (kind := kinds[roles[len(node.input) + position]]) in HALF:
                    node.output[position] = f"{name}/wide"
                    after.append(helper.make_node("Cast", [node.output[position]], [name], to=kind))
        nodes += [node, *after]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", DROPPING)
def test_every_site_is_one_node_in_the_types_of_the_graph(
    case: str,
    precision: str,
    dense: onnx.ModelProto,  # noqa: F811
    driver: Path,
    ort_library: Path,
) -> None:
    """The plugin takes every node as it stands; through ONNX Runtime's operator, in half types too, the graph says what the plain nodes say."""
    model, *_ = surgery.rewrite(dense, recipe(CASES[case], SHAPES[precision], precision=PRECISIONS[precision]))
    lowered, made = with_plugin_sites(model)
    lists = [output.name for output in model.graph.output if output.name.startswith("kept_")]
    assert made == len(sites_of(lowered)) == len(lists)
    before = [node.SerializeToString() for node in sites_of(lowered)]
    kinds = widened(lowered)
    for text, found in zip(before, kinds.values(), strict=True):
        node = onnx.NodeProto.FromString(text)
        attributes = attributes_of(node)
        roles = attributes["inputs"].split(","), attributes["outputs"].split(",")
        fields = [f"{name}={value!r}".replace("'", "") for name, value in attributes.items()]
        answer = shapes(driver, "PruneSite", f"types={','.join(str(NUMBERS[found[role]]) for role in roles[0])}", *fields)
        assert answer["output_types"] == [NUMBERS[found[role]] for role in roles[1]]
        assert answer["formats"] == [[1, 0, 0]] * (len(node.input) + len(node.output))
        assert answer["configure"] == 0
    halves = Counter(role for found in kinds.values() for role, kind in found.items() if kind in HALF)
    assert halves == Counter(role for found in kinds.values() for role in expected(case, precision) if role in found)
    x = images(4, (3, SIDE, SIDE), seed=3)
    plain = specialise(emulated(model), keep_outputs=True)[0]
    assert_alike(session(spread(emulated(lowered), kinds), ort_library), session(plain, ort_library), x)


@pytest.mark.parametrize("precision", ["fp16, residual", "bf16"])
@pytest.mark.parametrize("case", ["ats", "evit"])
def test_the_cuda_operator_does_the_same(case: str, precision: str, dense: onnx.ModelProto, ort_library: Path) -> None:  # noqa: F811
    """With emulated kernels, every bit."""
    model, *_ = surgery.rewrite(dense, recipe(CASES[case], SHAPES[precision], precision=PRECISIONS[precision]))
    lowered, _ = with_plugin_sites(model)
    kinds = widened(lowered)
    graph = spread(emulated(lowered), kinds)
    x = images(2, (3, SIDE, SIDE), seed=3)
    runs = [session(graph, library) for library in (ort_library, ort_library.with_name("libemulated_kernels.so"))]
    for one, other in zip(*(run.run(None, {"image": x}) for run in runs), strict=True):
        assert one.tobytes() == other.tobytes()


def expected(case: str, precision: str) -> tuple[str, ...]:
    """Roles of a half type: results of products and what is gathered for one; of a half stream rows where they are rounded first."""
    rounded = "residual" in precision and CASES[case]["method"] in ("ats", "topk")
    return ("query", "key", "value", "h", "rows2", *(("x", "rows") if rounded else ()))


def test_rows_are_rounded_behind_a_site_where_the_graph_does_it_there(dense: onnx.ModelProto) -> None:  # noqa: F811
    """EViT's combined row is a sum in float32, rounded with the others; a stream that is rounded first is widened behind its gathering."""
    for case, kind, op in (("evit", TensorProto.FLOAT16, "Cast"), ("ats", TensorProto.FLOAT, "Cast")):
        model, *_ = surgery.rewrite(dense, recipe(CASES[case], precision=PRECISIONS["fp16, residual"]))
        lowered, _ = with_plugin_sites(model)
        for node in sites_of(lowered):
            rows = node.output[attributes_of(node)["outputs"].split(",").index("rows")]
            readers = [one for one in lowered.graph.node if rows in one.input]
            assert [(one.op_type, attributes_of(one)["to"]) for one in readers] == [(op, kind)]


def test_what_is_rounded_inside_a_site_stays_plain_nodes(dense: onnx.ModelProto) -> None:  # noqa: F811
    """A score rounded to a half type, second rows rounded behind their gathering, rows that something reads before they are rounded."""
    model, *_ = surgery.rewrite(dense, recipe(CASES["topk"], precision=PRECISIONS["fp16, residual"]))
    first = stored(model)[0]
    assert with_plugin_sites(model)[1] == 2

    def spoilt(name: str, kinds: tuple[int, ...]) -> int:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        nodes = list(copy.graph.node)
        place = next(number for number, node in enumerate(nodes) if name in node.output)
        nodes[place].output[list(nodes[place].output).index(name)] = "planted/0"
        steps = [f"planted/{number}" for number in range(len(kinds))] + [name]
        casts = [helper.make_node("Cast", steps[i : i + 1], steps[i + 1 : i + 2], to=kind) for i, kind in enumerate(kinds)]
        del copy.graph.node[:]
        copy.graph.node.extend([*nodes[: place + 1], *casts, *nodes[place + 1 :]])
        return with_plugin_sites(copy)[1]

    score = next(node.input[0] for node in model.graph.node if node.op_type == "TopK" and "block2" in node.name)
    assert spoilt(score, (TensorProto.FLOAT, TensorProto.FLOAT)) == 2  # Casts that change nothing
    assert spoilt(score, (TensorProto.FLOAT16, TensorProto.FLOAT)) == 1
    assert spoilt(first.outputs["rows2"], (TensorProto.BFLOAT16, TensorProto.FLOAT16)) == 1
    fused, *_ = surgery.rewrite(dense, recipe(CASES["evit"], precision=PRECISIONS["fp16, residual"]))
    rounds = next(node for node in fused.graph.node if node.op_type == "Cast" and attributes_of(node)["to"] == TensorProto.FLOAT16
                  and node.name.endswith("Add_output_0/exact/fp16") and "blocks.2" in node.name)  # fmt: skip
    fused.graph.node.append(helper.make_node("Identity", [rounds.input[0]], ["before"]))
    fused.graph.output.append(helper.make_tensor_value_info("before", TensorProto.FLOAT, None))
    assert with_plugin_sites(fused)[1] == 1


def test_quantised_maps_with_products_in_a_half_type(dense: onnx.ModelProto) -> None:  # noqa: F811
    given = images(16, (3, SIDE, SIDE), seed=5)
    asked = ranges.with_opset(recipe(ATS, precision={"mode": "int8", "rest": "fp16"}))
    model, *_ = surgery.rewrite(dense, ranges.settle(dense, asked, True, lambda count: given[:count]))
    lowered, made = with_plugin_sites(model)
    assert made == 3
    kinds = [found["key"] for found in widened(lowered).values()]
    assert kinds == [TensorProto.FLOAT16] * 3
