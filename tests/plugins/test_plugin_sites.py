"""The graph for TensorRT with one plugin node for every dropping site: what is in it, that it says the same, that the plugin takes it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from test_native_sites import ATS, AVIT, CASES, PATCHES, SIDE, assert_alike, dense, recipe, session  # noqa: F401
from test_tensorrt_glue import shapes

from helpers import images
from vitprune.graph import surgery
from vitprune.graph.lowering import plugin_sites, pruning
from vitprune.graph.lowering.onnxruntime import specialise
from vitprune.graph.lowering.plugin_sites import with_plugin_sites
from vitprune.graph.lowering.tensorrt import for_tensorrt
from vitprune.support.onnx_types import HALF
from vitprune.support.versions import Version

DROPPING = ("topk", "topk, mean attention", "evit", "pomt", "ats", "ats, capacity", "asvit", "asvit, running", "dynamicvit")
# What sites are made of; of the other operators a pruned graph has as many as a dense one, and what its scores need.
GLUE = (
    "TopK",
    "TokenSample",
    "GatherND",
    "GatherElements",
    "ScatterElements",
    "NonZero",
    "Where",
    "Expand",
    "Shape",
    "Not",
    "Unsqueeze",
)


def sites_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "PruneSite"]


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def spread(model: onnx.ModelProto, kinds: dict[str, dict[str, int]] | None = None) -> onnx.ModelProto:
    """The same graph for ONNX Runtime's operator: a place for every tensor, LN1(x) flat, a mask in place of the key bias.

    Args:
        kinds: by name of a node the types of its tensors by role, which are float32 in the graph; Casts are put between.
    """
    nodes: list[onnx.NodeProto] = []
    for number, node in enumerate(model.graph.node):
        if node.op_type != "PruneSite":
            nodes.append(node)
            continue
        attributes = attributes_of(node)
        inputs = dict(zip(attributes.pop("inputs").split(","), node.input, strict=True))
        outputs = dict(zip(attributes.pop("outputs").split(","), node.output, strict=True))
        assert outputs.pop("count", "") or attributes["pad_to_capacity"]
        given = {role: outputs.get(role, "") for role in pruning.OUTPUTS}
        given |= {"rows2": f"flat{number}", "mask": f"mask{number}", "shape": f"shape{number}"}
        reads, writes = [inputs.get(role, "") for role in pruning.INPUTS], list(given.values())
        own = (kinds or {}).get(node.name, {})
        for position, role in enumerate(pruning.INPUTS):
            if reads[position] and own.get(role) in HALF:
                nodes.append(helper.make_node("Cast", [reads[position]], [f"{role}/{node.name}"], to=own[role]))
                reads[position] = f"{role}/{node.name}"
        after = []
        for position, role in enumerate(given):
            if writes[position] and own.get(role) in HALF:
                after.append(helper.make_node("Cast", [f"{role}/{node.name}"], [writes[position]], to=TensorProto.FLOAT))
                writes[position] = f"{role}/{node.name}"
        if "rows2" in outputs:
            after.append(helper.make_node("Reshape", [given["rows2"], given["shape"]], [outputs["rows2"]]))
        if "bias" in outputs:
            for name, values in (("axes", [1, 2]), ("there", [0.0]), ("pad", [-1e4])):
                kind = TensorProto.INT64 if name == "axes" else TensorProto.FLOAT
                model.graph.initializer.append(helper.make_tensor(f"{name}{number}", kind, [len(values)], values))
            after.append(helper.make_node("Cast", [given["mask"]], [f"live{number}"], to=TensorProto.BOOL))
            after.append(helper.make_node("Where", [f"live{number}", f"there{number}", f"pad{number}"], [f"row{number}"]))
            after.append(helper.make_node("Unsqueeze", [f"row{number}", f"axes{number}"], [outputs["bias"]]))
        nodes += [helper.make_node("PruneSite", reads, writes, node.name, domain=node.domain, **attributes), *after]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


@pytest.mark.parametrize("shapes_", ["dynamic", "padded"])
@pytest.mark.parametrize("case", DROPPING)
def test_every_site_is_one_node(
    case: str,
    shapes_: str,
    dense: onnx.ModelProto,  # noqa: F811
    driver: Path,
    ort_library: Path,
) -> None:
    """Nothing of the site's glue is left, the plugin takes every node as it stands, and the graph says what the plain nodes say."""
    rules = recipe(CASES[case], shapes_)
    model, *_ = surgery.rewrite(dense, rules)
    lowered, made = with_plugin_sites(model)
    lists = [output.name for output in model.graph.output if output.name.startswith("kept_")]
    assert made == len(sites_of(lowered)) == len(lists)
    assert not lowered.functions
    assert [value.name for value in lowered.graph.output] == [value.name for value in model.graph.output]
    counted, bare = (Counter(node.op_type for node in one.graph.node) for one in (lowered, surgery.canonical(dense, rules)))
    scored = (
        {"Unsqueeze", "Where", "Expand", "Shape", "Not"}
        if "mean attention" in case or case in ("dynamicvit", "pomt", "asvit, running")
        else set()
    )
    assert {kind: counted[kind] for kind in GLUE if kind not in scored} == {
        kind: bare[kind] for kind in GLUE if kind not in scored
    }
    for node in sites_of(lowered):
        assert all(node.input)
        assert all(node.output)
        answer = shapes(
            driver, "PruneSite", *[f"{name}={value!r}".replace("'", "") for name, value in attributes_of(node).items()]
        )
        assert (answer["status"], len(answer["shapes"])) == (0, len(node.output))
        for name, value in answer["fields"].items():
            assert (
                value == pytest.approx(attributes_of(node)[name])
                if isinstance(value, float)
                else value == attributes_of(node)[name]
            )
    x = images(4, (3, SIDE, SIDE), seed=3)
    whole = assert_alike(session(spread(lowered), ort_library), session(specialise(model, keep_outputs=True)[0], ort_library), x)
    assert sum(int((rows >= 0).sum()) for rows in whole[1:]) < 4 * PATCHES * len(lists)  # tokens do leave


def test_without_kept_lists_nothing_is_written_for_them(dense: onnx.ModelProto) -> None:  # noqa: F811
    model, *_ = surgery.rewrite(dense, recipe(ATS))
    del model.graph.output[1:]
    roles = [attributes_of(node)["outputs"] for node in sites_of(with_plugin_sites(model)[0])]
    assert roles == ["rows,rows2,keep,bias,count"] * 2 + ["rows,rows2,bias,count"]


def test_what_cannot_be_one_node_stays_as_it_is(dense: onnx.ModelProto) -> None:  # noqa: F811
    """Halting; TokenSample then keeps its function."""
    model, *_ = surgery.rewrite(dense, recipe(AVIT))
    lowered, made = with_plugin_sites(model)
    assert made == len(sites_of(lowered)) == 0
    samples = sum(node.op_type == "TokenSample" for node in lowered.graph.node)
    assert samples == sum(node.op_type == "TokenSample" for node in model.graph.node) > 0
    assert [body.name for body in lowered.functions] == ["TokenSample"]


def test_forms_for_tensorrt(dense: onnx.ModelProto) -> None:  # noqa: F811
    model, *_ = surgery.rewrite(dense, recipe(ATS))
    lowered = with_plugin_sites(model)[0].SerializeToString()
    for version in ("10.3", "11.4"):
        assert for_tensorrt(lowered, Version.parse(version), True) == (lowered, "plugin")


def test_names_are_those_of_the_library() -> None:
    table = (Path(__file__).parents[2] / "plugins/src/tensorrt/site_fields.cpp").read_text()
    for name, roles in (("kInputs", pruning.INPUTS), ("kOutputs", tuple(plugin_sites.OUTPUTS))):
        body = table.split(f"constexpr SiteTensorKind {name}[] = {{")[1].split("};")[0]
        assert tuple(piece.split('"')[1] for piece in body.split("{")[1:]) == roles
