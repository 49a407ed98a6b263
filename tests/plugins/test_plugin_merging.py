"""The graph for TensorRT with one plugin node for every merging site: what is in it, that it says the same, that the plugin takes it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from plugin_runs import run_plugin, words_of
from test_native_merging import CASES, SIDE, dense, session  # noqa: F401
from test_plugin_sites import attributes_of
from test_tensorrt_glue import shapes

import vitprune
from helpers import images
from vitprune.graph import surgery
from vitprune.graph.lowering import merging, plugin_merging
from vitprune.graph.lowering.onnxruntime import specialise
from vitprune.graph.lowering.plugin_merging import OUTPUTS
from vitprune.graph.lowering.plugin_sites import with_plugin_sites
from vitprune.graph.lowering.tensorrt import for_tensorrt
from vitprune.graph.outlines import KEY, stored
from vitprune.ops.token_sample import DOMAIN
from vitprune.support.versions import Version

KINDS = tuple(plugin_merging.ATTRIBUTES)
# What sites are made of; of the other operators a pruned graph has what its products, sketches and scores need.
GLUE = (
    "TopK", "TokenSample", "GatherND", "GatherElements", "ScatterElements", "ScatterND", "ArgMin", "ArgMax", "Equal", "Greater", "Less",
    "Where", "ConstantOfShape", "Log", "Cast", "Not", "ReduceMax", "ReduceL2", "Unsqueeze",
)  # fmt: skip
SCORED = {  # what gives attention from all queries, counted by sizes, with pads left out
    "ward": ("Unsqueeze", "ReduceL2", "ConstantOfShape", "Cast", "Not"),
    "sampled, mean attention": ("Unsqueeze", "Cast"),
}


def sites_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in KINDS]


def pruned(dense: Callable[[str], onnx.ModelProto], case: str, shapes_: str = "dynamic", **more: object) -> onnx.ModelProto:  # noqa: F811
    pool = "avg" if case == "ward" else "token"
    wanted = vitprune.Recipe.load({"prune": CASES[case], "graph": {"shapes": shapes_, "batch": "1:4:8"}, **more})
    return surgery.rewrite(dense(pool), wanted)[0]


def spread(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph for ONNX Runtime's operators: a place for every tensor, a flat key bias, numbers of patches by plain nodes."""
    nodes: list[onnx.NodeProto] = []
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2], np.int64), "axes"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(-1, np.int64), "nobody"))
    for number, node in enumerate(model.graph.node):
        if node.op_type not in KINDS:
            nodes.append(node)
            continue
        attributes = attributes_of(node)
        inputs = dict(zip(attributes.pop("inputs").split(","), node.input, strict=True))
        outputs = dict(zip(attributes.pop("outputs").split(","), node.output, strict=True))
        assert ("count" in outputs) is not (attributes["padded"] or attributes.get("by_threshold") == 0)
        if "asked_bias" in inputs:  # that of the site before, as attention reads it
            nodes.append(helper.make_node("Squeeze", [inputs["asked_bias"], "axes"], [f"asked{number}"]))
            inputs["asked_bias"] = f"asked{number}"
        sampled = node.op_type == "SampledMerge"
        roles = (merging.SAMPLED_INPUTS, merging.SAMPLED_OUTPUTS) if sampled else (merging.INPUTS[node.op_type], merging.OUTPUTS)
        names = {role: outputs.get(role, f"{role}{number}") for role in roles[1]} | {"bias": f"flat{number}"}
        if "group" not in inputs:
            names["group"] = ""
        reads = [inputs.get(role, "") for role in roles[0]]
        nodes.append(helper.make_node(node.op_type, reads, list(names.values()), node.name, domain=DOMAIN, **attributes))
        if "bias" in outputs:
            nodes.append(helper.make_node("Unsqueeze", [names["bias"], "axes"], [outputs["bias"]]))
        if not sampled and {"patch", "kept"} & outputs.keys():
            patch = outputs.get("patch", f"patch{number}")
            before = [inputs["patch"], names["index"]] if "patch" in inputs else [names["index"]]
            kind = {"op_type": "GatherElements", "axis": 1} if "patch" in inputs else {"op_type": "Identity"}
            nodes.append(helper.make_node(inputs=before, outputs=[patch], **kind))
            nodes.append(helper.make_node("Where", [names["keep"], patch, "nobody"], [outputs.get("kept", f"kept{number}")]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def tensors_of(model: onnx.ModelProto, names: list[str], library: Path) -> dict[str, np.ndarray]:
    """Values of tensors of a graph, of three images."""
    made = {name for node in model.graph.node for name in node.output} - {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(made & set(names)))
    running = session(model, library)
    values = running.run(None, {running.get_inputs()[0].name: images(3, (3, SIDE, SIDE), seed=3)})
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return held | dict(zip([value.name for value in running.get_outputs()], values, strict=True))


def assert_alike(ours: onnx.ModelProto, theirs: onnx.ModelProto, library: Path, atol: float = 2e-5) -> None:
    """Alone and in batches, all outputs."""
    first, second = session(ours, library), session(theirs, library)
    x = images(5, (3, SIDE, SIDE), seed=3)
    for batch in (x[:1], x, x[1:3]):
        found = first.run(None, {first.get_inputs()[0].name: batch})
        expected = second.run(None, {second.get_inputs()[0].name: batch})
        for value, one, other in zip(first.get_outputs(), found, expected, strict=True):
            if one.dtype == np.int64:
                np.testing.assert_array_equal(one, other, err_msg=value.name)
            else:
                np.testing.assert_allclose(one, other, atol=atol, err_msg=value.name)


@pytest.mark.parametrize("shapes_", ["dynamic", "padded"])
@pytest.mark.parametrize("case", CASES)
def test_every_site_is_one_node(
    case: str,
    shapes_: str,
    dense: Callable[[str], onnx.ModelProto],  # noqa: F811
    ort_library: Path,
) -> None:
    """Nothing of the site's glue is left, and the graph says what the plain nodes say."""
    model = pruned(dense, case, shapes_)
    lowered, made = with_plugin_sites(model)
    assert made == len(sites_of(lowered)) == len(stored(model)) >= 3
    assert not lowered.functions
    assert [value.name for value in lowered.graph.output] == [value.name for value in model.graph.output]
    rules = vitprune.Recipe.load({"prune": CASES[case], "graph": {"shapes": shapes_, "batch": "1:4:8"}})
    bare = surgery.canonical(dense("avg" if case == "ward" else "token"), rules)
    counted, wanted = (Counter(node.op_type for node in one.graph.node) for one in (lowered, bare))
    glue = [kind for kind in GLUE if kind not in SCORED.get(case, ())]
    assert {kind: counted[kind] for kind in glue} == {kind: wanted[kind] for kind in glue}
    assert_alike(spread(lowered), specialise(model, keep_outputs=True)[0], ort_library)


@pytest.mark.parametrize("shapes_", ["dynamic", "padded"])
@pytest.mark.parametrize("case", CASES)
def test_the_plugin_takes_every_node_as_it_stands(
    case: str,
    shapes_: str,
    dense: Callable[[str], onnx.ModelProto],  # noqa: F811
    driver: Path,
    runner: tuple[Path, Path],
    ort_library: Path,
    tmp_path: Path,
) -> None:
    """And gives, of the tensors that reach it in the graph, what ONNX Runtime's operator gives."""
    lowered, _ = with_plugin_sites(pruned(dense, case, shapes_))
    sites = sites_of(lowered)
    found = tensors_of(spread(lowered), [name for site in sites for name in (*site.input, *site.output)], ort_library)
    for site in sites:
        assert all(site.input)
        assert all(site.output)
        fields = attributes_of(site)
        answer = shapes(driver, site.op_type, *words_of(fields))
        told = {name: value for name, value in fields.items() if not name.startswith("plugin_")}
        assert answer["fields"] == pytest.approx(told)
        inputs = dict(zip(fields.pop("inputs").split(","), (found[name] for name in site.input), strict=True))
        names = dict(zip(fields.pop("outputs").split(","), site.output, strict=True))
        written = run_plugin(runner, tmp_path, site.op_type, fields, inputs, {role: OUTPUTS[role] for role in names})
        kept = found[names["rows"]].shape[1] - fields["prefix"]
        assert int(written.pop("count", np.array([kept]))[0]) == kept
        for role, value in written.items():
            wanted = found[names[role]].ravel()
            if wanted.dtype == np.float32:
                np.testing.assert_allclose(value[: wanted.size], wanted, atol=1e-5, err_msg=role)
            else:
                np.testing.assert_array_equal(value[: wanted.size], wanted, err_msg=role)


@pytest.mark.parametrize("case", ["tome", "threshold, capacity", "ward, fixed", "ward, no sizes"])
def test_a_site_in_a_half_type_is_one_node_where_nothing_is_rounded_inside(
    case: str,
    dense: Callable[[str], onnx.ModelProto],  # noqa: F811
    ort_library: Path,
) -> None:
    """The row of the CLS token then comes from the plain nodes: queries and keys of the attention are of the half type."""
    model = pruned(dense, case, precision={"mode": "fp16"})
    lowered, made = with_plugin_sites(model)
    assert made == len(sites_of(lowered)) == len(stored(model))
    assert not any("query" in attributes_of(site)["inputs"].split(",") for site in sites_of(lowered))
    assert_alike(spread(lowered), model, ort_library, atol=1e-3)


def test_a_site_that_rounds_inside_keeps_its_nodes(dense: Callable[[str], onnx.ModelProto]) -> None:  # noqa: F811
    model = pruned(dense, "sampled", precision={"mode": "fp16"})
    lowered, made = with_plugin_sites(model)
    assert made == len(sites_of(lowered)) == 0
    assert [body.name for body in lowered.functions] == ["TokenSample"]


@pytest.mark.parametrize(
    ("there", "back", "more"), [("Cast", "Cast", []), ("QuantizeLinear", "DequantizeLinear", ["planted/scale"])]
)
@pytest.mark.parametrize("case", ["tome", "ward, fixed"])
def test_a_rounding_planted_inside_a_site_keeps_its_nodes(
    case: str, there: str, back: str, more: list[str], dense: Callable[[str], onnx.ModelProto]  # noqa: F811
) -> None:  # fmt: skip
    """Between the joined rows and their readers, in one of the sites: to a half type, or to int8 and back."""
    model = pruned(dense, case)
    told = [one for one in stored(model) if one.kind in KINDS]
    rows = told[1].outputs["rows"]
    assert len(sites_of(with_plugin_sites(model)[0])) == len(told)
    next(node for node in model.graph.node if rows in node.output).output[0] = "planted/exact"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "planted/scale"))
    to = [{"to": onnx.TensorProto.FLOAT16}, {"to": onnx.TensorProto.FLOAT}] if there == "Cast" else [{}, {}]
    model.graph.node.append(helper.make_node(there, ["planted/exact", *more], ["planted/half"], **to[0]))
    model.graph.node.append(helper.make_node(back, ["planted/half", *more], [rows], **to[1]))
    assert len(sites_of(with_plugin_sites(model)[0])) == len(told) - 1


def test_forms_for_tensorrt(dense: Callable[[str], onnx.ModelProto]) -> None:  # noqa: F811
    for case in ("tome", "ward", "sampled"):
        lowered = with_plugin_sites(pruned(dense, case))[0].SerializeToString()
        for version in ("10.3", "11.4"):
            assert for_tensorrt(lowered, Version.parse(version), True) == (lowered, "plugin")


def test_a_tampered_outline_is_no_danger(dense: Callable[[str], onnx.ModelProto]) -> None:  # noqa: F811
    """Attributes of other names or types, and tensors that are not there, leave the plain nodes."""
    for case in ("tome", "ward", "sampled"):
        model = pruned(dense, case)
        text = next(entry for entry in model.metadata_props if entry.key == KEY)
        told = json.loads(text.value)
        told[0]["attributes"]["more"] = 1
        told[1]["attributes"]["prefix"] = 1.5
        told[2]["inputs"]["x"] = "nowhere"
        text.value = json.dumps(told[:3])
        assert with_plugin_sites(model)[1] == 0


def test_names_are_those_of_the_library() -> None:
    table = (Path(__file__).parents[2] / "plugins/src/tensorrt/merge_fields.cpp").read_text()
    for name, roles in (("kInputs", plugin_merging.INPUTS), ("kOutputs", tuple(OUTPUTS))):
        body = table.split(f"constexpr MergeTensorKind {name}[] = {{")[1].split("};")[0]
        assert tuple(piece.split('"')[1] for piece in body.split("{")[1:]) == roles


def test_without_lists_nothing_is_written_for_them(dense: Callable[[str], onnx.ModelProto]) -> None:  # noqa: F811
    """Neither numbers nor groups, along the whole row of sites."""
    for case, roles in (
        ("threshold", ["rows,size,bias,keep,count"] * 3 + ["rows,count"]),
        ("ward, fixed", ["rows,size,bias"] * 2 + ["rows,bias"]),
    ):
        model = pruned(dense, case)
        del model.graph.output[1:]
        sites = [attributes_of(node) for node in sites_of(with_plugin_sites(model)[0])]
        assert [site["outputs"] for site in sites] == roles
        assert not any({"patch", "group"} & set(site["inputs"].split(",")) for site in sites)
