"""A residual stream in a half type, and images and logits in float16: graph against reference, what is stored, and what is refused."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from quantised_support import settled
from test_precision import checked, dense, model, pixels, recipe, samples

import vitprune
from vitprune import cli
from vitprune.backends.onnxruntime import Session
from vitprune.errors import RecipeError
from vitprune.exporting import parity
from vitprune.exporting.precision import settle
from vitprune.graph import surgery
from vitprune.graph.precision import audit
from vitprune.recipe import Recipe
from vitprune.vit.pruned import PrunedViT

METHODS = ("topk", "tome", "avit", "evit")


def difference(graph_rules, reference_rules):
    """Largest difference of logits between the graph of one recipe and the reference of another."""
    pruned, _, _ = surgery.rewrite(dense(), graph_rules, has_cls=True)
    oracle = PrunedViT(model(), reference_rules).eval()
    session = parity.make_session(parity.emulated(pruned).SerializeToString())
    with torch.inference_mode():
        return float(np.abs(parity.run(session, pixels(), None)[0] - oracle(torch.from_numpy(pixels())).numpy()).max())


@pytest.mark.parametrize("mode", ["fp16", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_a_half_stream_is_rounded_at_every_sum(method, mode):
    rules = recipe(method, mode, residual="half")
    pruned, _, check = checked(rules)
    assert all(site["illegal_flips"] == 0 for site in check["sites"])
    assert audit.half_decisions(pruned) == []
    stream = [node for node in pruned.graph.node if node.name.startswith("vitprune/residual/") and node.op_type == "Identity"]
    assert len(stream) == 1 + 2 * 4  # the embedding, and two sums in each of four blocks
    assert {audit.types(pruned).get(node.output[0]) for node in stream} == {
        TensorProto.FLOAT16 if mode == "fp16" else TensorProto.BFLOAT16
    }


def test_a_reference_with_another_stream_is_told_from_the_graph():
    """Planted: one of the two leaves the stream in float32."""
    rules = recipe("topk", "bf16", residual="half")
    alike = difference(rules, rules)
    assert difference(rules, recipe("topk", "bf16")) > 2 * alike
    assert difference(recipe("topk", "bf16"), rules) > 2 * alike


@pytest.mark.parametrize(
    "rules", [recipe("topk", io="half"), recipe("tome", io="half"), recipe("avit", io="half", residual="half")]
)
def test_half_images_and_logits(rules):
    pruned, _, check = checked(rules)
    assert {value.type.tensor_type.elem_type for value in (pruned.graph.input[0], pruned.graph.output[0])} == {
        TensorProto.FLOAT16
    }
    assert all(value.type.tensor_type.elem_type == TensorProto.INT64 for value in pruned.graph.output[1:])
    assert all(site["illegal_flips"] == 0 for site in check["sites"])
    assert audit.half_decisions(pruned) == []
    onnx.checker.check_model(pruned, full_check=True)
    # ONNX Runtime runs it as it is, on float16 images.
    session = parity.make_session(pruned.SerializeToString())
    logits = session.run([pruned.graph.output[0].name], {pruned.graph.input[0].name: pixels().astype(np.float16)})[0]
    assert logits.dtype == np.float16
    oracle = PrunedViT(model(), rules).eval()
    arrays = parity.reference_arrays(oracle, samples(), parity.module_logits(model(), pixels()), None)
    assert np.array_equal(arrays["logits"], arrays["logits"].astype(np.float16))
    assert np.median(np.abs(logits - arrays["logits"]).max(axis=1)) < 0.01


def test_a_half_stream_beside_int8():
    rules = settled("topk").with_("precision.residual", "half").with_("precision.io", "half")
    pruned, _, check = checked(rules)
    assert check["layers_max_abs"] < 1e-6
    assert pruned.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    assert sum(node.name.startswith("vitprune/residual/") and node.op_type == "Identity" for node in pruned.graph.node) == 9


def code_of(action):
    with pytest.raises(RecipeError) as caught:
        action()
    assert caught.value.cause
    assert caught.value.next_step
    return caught.value.code


def test_what_cannot_be_half_is_refused():
    for rules in (
        recipe(mode="fp32", io="half"),
        recipe(mode="fp32", residual="half"),
        recipe(mode="bf16", io="half"),
        settled("topk", rest="fp32").with_("precision.residual", "half"),
        Recipe.load({**recipe("tome", residual="half").to_dict(), "output": {"kind": "features"}}),
    ):
        assert code_of(lambda rules=rules: surgery.rewrite(dense(), rules, has_cls=True)) == "VP115"


def test_a_stream_that_overflows_is_refused():
    """Planted: a projection's bias of 1e5 stands in the stream, and in no layer's input or result."""
    graph = onnx.ModelProto()
    graph.CopyFrom(dense())
    bias = next(tensor for tensor in graph.graph.initializer if tensor.name.endswith("pos_embed"))
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0, 3] += 1e5
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    assert settle(graph, recipe("topk"), True, pixels(2))[1] == {}
    assert code_of(lambda: settle(graph, recipe("topk", residual="half"), True, pixels(2))) == "VP114"
    assert settle(graph, recipe("topk", "bf16", residual="half"), True, pixels(2))[1] == {}


def test_a_bundle_in_half_goes_through_the_commands(tmp_path):
    rules = recipe("topk", residual="half", io="half").to_dict()
    rules["validate"]["samples"] = 8
    bundle = vitprune.export(model(), Recipe.load(rules), tmp_path / "b")
    assert bundle.manifest.io["inputs"][0]["dtype"] == bundle.manifest.io["outputs"][0]["dtype"] == "float16"
    assert cli.run(["validate", str(bundle.path), "--quiet", "--reference", "stored"]) == 0
    assert cli.run(["build-engine", str(bundle.path), "--target", "onnxruntime-cpu", "--quiet"]) == 0
    assert cli.run(["validate", str(bundle.path), "--quiet", "--target", "onnxruntime-cpu", "--reference", "stored"]) == 0
    assert cli.run(["package", str(bundle.path), "--triton", str(tmp_path / "t"), "--quiet"]) == 0
    config = next((tmp_path / "t").rglob("config.pbtxt")).read_text()
    assert config.count("TYPE_FP16") == 2
    found = Session(bundle, engine=bundle.model_path).run(pixels(4))  # the file itself, nothing emulated
    assert (found.logits.dtype, found.kept[0].dtype) == (np.float32, np.int64)
