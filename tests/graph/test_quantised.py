"""int8 and FP8: the graph, the reference, the ranges, smoothing, and defects planted in each."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from quantised_support import METHODS, calibrated, outlier, rules, settled
from test_precision import checked, dense, model, pixels, samples, torchscript

from vitprune.backends.onnxruntime import make_session
from vitprune.errors import ExportError, RecipeError
from vitprune.exporting import parity, ranges
from vitprune.exporting.given_quantised import refuse_quantised
from vitprune.exporting.layers import check_layers
from vitprune.graph import surgery
from vitprune.graph.lowering.rounding import emulated
from vitprune.graph.precision import audit, casting, passes, quantising, smoothing
from vitprune.support import precision
from vitprune.support.precision import LARGEST, exponent_text, exponents
from vitprune.vit.pruned import PrunedViT
from vitprune.vit.quantised import QuantLinear, on_grid, unsure_weights

# A value on the edge between two steps falls to one or the other with the order in which a processor adds. E4M3's steps are up to 16
# times int8's; over the whole network they weigh some three times as much (0.0065 and 0.0202 seen on one processor).
EDGES = {"int8": 0.02, "fp8": 0.06}


@pytest.mark.parametrize(
    ("method", "mode", "rest"),
    [*((method, "int8", "fp16") for method in METHODS), ("ats", "int8", "fp32"), ("ats", "fp8", "bf16"), ("tome", "fp8", "fp16")],
)
def test_graph_and_reference_agree(method, mode, rest):
    pruned, notes, check = checked(settled(method, mode, rest))
    counted = audit.layers_by_type(pruned)
    assert counted[mode] >= 4 * 6  # per block q, k, v, projection and the MLP's two
    assert counted.get(rest, 0) >= 4 * 2  # Q K^T and P V
    assert notes["precision"]["quantize"] >= 4 * 4
    assert check["layers_compared"] == 16
    assert check["layers_max_abs"] < 1e-6
    assert check["logits_max_abs"] < EDGES[mode]
    assert all(site["illegal_flips"] == 0 for site in check["sites"])
    assert audit.half_decisions(pruned) == []
    outputs = {value.type.tensor_type.elem_type for value in (*pruned.graph.input, pruned.graph.output[0])}
    assert outputs == {TensorProto.FLOAT}


def test_weights_are_stored_in_the_type():
    whole, _, _ = surgery.rewrite(dense(), settled().with_("precision.mode", "fp32"), has_cls=True)
    for mode, kind in (("int8", TensorProto.INT8), ("fp8", TensorProto.FLOAT8E4M3FN)):
        pruned, _, _ = surgery.rewrite(dense(), settled(mode=mode), has_cls=True)
        stored = [tensor for tensor in pruned.graph.initializer if tensor.data_type == kind and len(tensor.dims) == 2]
        # q, k, v (and the query that scores, which shares q's), projection and MLP of four blocks
        assert sum(np.prod(tensor.dims) for tensor in stored) == 4 * (3 * 64 * 64 + 64 * 64 + 2 * 64 * 256)
        floats = [
            tensor for tensor in pruned.graph.initializer if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2
        ]
        assert sum(np.prod(tensor.dims) for tensor in floats) < 64 * 64
        assert pruned.ByteSize() < 0.45 * whole.ByteSize()
        assert [entry.version for entry in pruned.opset_import if not entry.domain][0] == (18 if mode == "int8" else 19)


def test_every_product_has_one_scale_per_tensor_and_one_per_output_channel():
    pruned, _, _ = surgery.rewrite(dense(), settled(), has_cls=True)
    makers = {name: node for node in pruned.graph.node for name in node.output}
    sizes = {tensor.name: list(tensor.dims) for tensor in pruned.graph.initializer}
    products = audit.quantised_products(pruned)
    assert len(products) >= 24
    for node in products:
        data, weight = (makers[name] for name in node.input[:2])
        assert makers[data.input[0]].op_type == "QuantizeLinear"
        assert sizes[data.input[1]] == []
        axis = next(attribute.i for attribute in weight.attribute if attribute.name == "axis")
        assert sizes[weight.input[1]] == [sizes[weight.input[0]][axis]]
        assert axis == (0 if any(a.name == "transB" and a.i for a in node.attribute) else 1)
    around = {
        makers[name].op_type
        for node in pruned.graph.node
        if node.op_type in ("Softmax", "LayerNormalization")
        for name in node.input[:1]
    }
    assert not around & audit.QUANTISES


def test_the_grid_is_that_of_onnx():
    x = torch.cat([torch.randn(500) * 3, torch.tensor([0.0, 0.25, 0.75, 1.25, -0.25, 1e4, -1e4, 127.6, -128.4])])
    for mode, scale in (("int8", 0.5), ("fp8", 0.01)):
        zero = np.zeros((), np.int8) if mode == "int8" else quantising.ml_dtypes.float8_e4m3fn(0)
        graph = helper.make_graph(
            [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])],
            "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [len(x)])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(x)])],
            [numpy_helper.from_array(np.float32(scale), "s"), numpy_helper.from_array(np.asarray(zero), "z")],
        )  # fmt: skip
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        theirs = make_session(made.SerializeToString()).run(None, {"x": x.numpy()})[0]
        assert np.array_equal(on_grid(x, torch.tensor(scale), mode).numpy(), theirs)


# What would make a wrong result that passes: each is planted, and named by the check of single layers.
def wrong_scale(pruned):
    scale = next(tensor for tensor in pruned.graph.initializer if tensor.name == "blocks.2.mlp.fc1/scale")
    scale.CopyFrom(numpy_helper.from_array(np.float32(1.02) * numpy_helper.to_array(scale), scale.name))


def wrong_axis(pruned):
    node = next(node for node in pruned.graph.node if node.name.endswith("dequantize") and "block2/attn/proj" in node.input[0])
    names = {tensor.name: tensor for tensor in pruned.graph.initializer}
    scale = names[node.input[1]]
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale)[::-1].copy(), scale.name))


def wrong_weight(pruned):
    weight = next(t for t in pruned.graph.initializer if t.data_type == TensorProto.INT8 and "block2/attn/v" in t.name)
    values = numpy_helper.to_array(weight).copy()
    values[0] = -values[0]
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def few(model):
    return {model.graph.input[0].name: pixels()[:4]}


@pytest.mark.parametrize(
    ("spoil", "named", "mode"),
    [
        (wrong_scale, "blocks.2.mlp.fc1", "int8"),
        (wrong_scale, "blocks.2.mlp.fc1", "fp8"),
        (wrong_axis, "blocks.2.attn.proj", "int8"),
        (wrong_weight, "blocks.2.attn.qkv", "int8"),
    ],
)
def test_a_wrong_layer_is_named(spoil, named, mode):
    recipe = settled(mode=mode)
    pruned, _, _ = surgery.rewrite(dense(), recipe, has_cls=True)
    oracle = PrunedViT(model(), recipe).eval()
    assert check_layers(pruned, oracle.dense, few(pruned))[1] == []
    spoil(pruned)
    assert [text.split()[0] for text in check_layers(pruned, oracle.dense, few(pruned))[1]] == [named]
    arrays = parity.reference_arrays(oracle, samples(), parity.module_logits(model(), pixels()), None)
    with pytest.raises(ExportError) as caught:
        parity.check(pruned, arrays, recipe, oracle.geometry, oracle)
    assert (caught.value.code, named in caught.value.cause) == ("VP330", True)


@pytest.mark.parametrize("mode", ["int8", "fp8"])
def test_a_weight_on_the_edge_may_round_either_way_and_no_other(mode):
    """Two implementations fold attention's scale into weights with other roundings; a weight between two steps then goes either way."""
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    weight[:, 0] = 4.0  # the largest of every row, so that steps are known
    step = 4.0 / LARGEST[mode] * (1 if mode == "int8" else 8)  # of E4M3 between 64 and 128
    inside, edge = 80 if mode == "fp8" else 20, (80 + 4 if mode == "fp8" else 20.5)
    weight[2, 5] = edge * 4.0 / LARGEST[mode]
    weight[3, 5] = inside * 4.0 / LARGEST[mode]
    unsure = unsure_weights(weight, mode)
    assert float(unsure[2, 5]) == pytest.approx(step)
    assert int((unsure > 0).sum()) == 1
    linear = torch.nn.Linear(32, 6, bias=False)
    linear.weight.data = weight
    layer, x = QuantLinear(linear, LARGEST[mode], mode), torch.ones(2, 32)  # ones are numbers of either type
    moved = [layer.product(x), layer.product(x)]
    for row, values in ((2, moved[0]), (3, moved[1])):
        values[:, row] += step  # planted: the weight is one step further
    apart = [((layer.product(x) - values).abs() - layer.unsure(x)).max() for values in moved]
    assert float(apart[0].detach()) <= 1e-5 < 0.5 * step < float(apart[1].detach())


def test_a_layer_that_was_forgotten_is_named():
    recipe = settled()
    some, _, _ = surgery.rewrite(dense(), recipe.with_("precision.exclude", ["blocks.3.mlp.fc2"]), has_cls=True)
    oracle = PrunedViT(model(), recipe).eval()
    with pytest.raises(ExportError, match="types") as caught:
        check_layers(some, oracle.dense, few(some))
    assert "blocks.3.mlp.fc2" in caught.value.cause


def test_steps_of_e4m3_are_those_of_the_type():
    """The unit of fp8's margins, written out from the type's definition, against the steps of PyTorch's type on normal numbers."""
    numbers = torch.randn(200_000, generator=torch.Generator().manual_seed(0)).abs() * 448 / precision.CREST
    on = numbers.clamp(max=440).to(torch.float8_e4m3fn)
    above = (on.view(torch.uint8) + 1).view(torch.float8_e4m3fn).float()  # the next code is the next number
    steps = (above - on.float()) / 448
    assert float(steps.square().mean().sqrt()) == pytest.approx(
        precision.e4m3_step(), rel=0.05
    )  # some round up to where steps are longer
    assert precision.margin_tolerance("fp8") == 4 * precision.e4m3_step()


def test_what_goes_the_other_way_grows_with_the_root_of_the_step():
    """Why fp8's tolerance of logits is not int8's times the ratio of their steps: numbers that differ by a noise, on grids of two steps."""
    made = torch.Generator().manual_seed(0)
    numbers = torch.rand(1_000_000, generator=made, dtype=torch.float64)
    noise, ratio = 1e-4 * torch.randn(1_000_000, generator=made, dtype=torch.float64), 2.4

    def apart(step):
        return float((((numbers + noise) / step).round() - (numbers / step).round()).mul(step).square().mean().sqrt())

    assert apart(0.01 * ratio) / apart(0.01) == pytest.approx(ratio**0.5, rel=0.1)
    assert precision.logits_tolerance("int8", 2.0) == 8 * 2**-7 * 2
    grown = precision.logits_tolerance("fp8", 2.0) / precision.logits_tolerance("int8", 2.0)
    assert grown == pytest.approx((precision.margin_tolerance("fp8") / precision.margin_tolerance("int8")) ** 0.5)


@pytest.mark.parametrize("label", ["prune/cls_logits", "prune/cls_row"])
def test_a_score_branch_in_fp16_is_found_beside_fp8(label):
    """Planted: fp8's margin is wide, and a score branch in fp16 stays well inside it."""
    pruned, _, _ = surgery.rewrite(dense(), settled("ats", "fp8", "bf16"), has_cls=True)
    name = next(node.name for node in pruned.graph.node if node.name.endswith(label))
    assert name in audit.half_decisions(casting.cast(pruned, {name}, "fp16"))


def test_a_quantised_score_is_found():
    """Planted: the scores that decide go through int8."""
    pruned, _, _ = surgery.rewrite(dense(), settled("topk"), has_cls=True)
    topk = next(node for node in pruned.graph.node if node.op_type == "TopK")
    score = topk.input[0]
    pruned.graph.initializer.append(numpy_helper.from_array(np.float32(0.01), "planted/scale"))
    pruned.graph.initializer.append(numpy_helper.from_array(np.int8(0), "planted/zero"))
    pruned.graph.node.extend([
        helper.make_node("QuantizeLinear", [score, "planted/scale", "planted/zero"], ["planted/q"], name="planted/quantize"),
        helper.make_node("DequantizeLinear", ["planted/q", "planted/scale", "planted/zero"], ["planted/dq"], name="planted/dequantize"),
    ])  # fmt: skip
    topk.input[0] = "planted/dq"
    assert audit.half_decisions(pruned) == ["planted/dequantize"]


def relative(logits, full):
    return float(np.sqrt(((logits - full) ** 2).mean() / (full**2).mean()))


def error_of(module, graph, smooth):
    """RMS of what int8 changes over RMS of the logits, on images that calibration has not seen; of the exported graph."""
    recipe = calibrated(rules("topk", rest="fp32", smooth=smooth), graph)
    pruned, _, _ = surgery.rewrite(graph, recipe, has_cls=True)
    x = pixels(32, 11)
    ours = parity.run(make_session(pruned.SerializeToString()), x, None)[0]
    with torch.inference_mode():
        full = PrunedViT(module, recipe.with_("precision.mode", "fp32")).eval()(torch.from_numpy(x)).numpy()
    return relative(ours, full)


def test_an_outlier_channel_breaks_int8_and_smoothing_holds_it():
    """One channel of one LayerNorm's gain times 200."""
    usual = error_of(model(), dense(), smooth=False)
    spoilt = outlier(200.0)
    graph = torchscript(spoilt)
    plain, smooth = error_of(spoilt, graph, smooth=False), error_of(spoilt, graph, smooth=True)
    assert usual < 0.05
    assert plain > 5 * usual
    assert smooth < 1.5 * usual


def test_smoothing_alone_changes_no_bit():
    graph = torchscript(outlier())
    recipe = calibrated(rules("topk", rest="fp32"), graph)
    letters = recipe.precision.smoothing
    assert abs(exponents(letters["blocks.1.mlp.fc1"])[5]) >= 5
    assert any(layer.endswith("attn.proj") for layer in letters)
    untyped, plan = surgery.untyped(graph, recipe, True)
    moved = passes.smoothed(untyped, plan)
    before, after = (parity.run(make_session(one.SerializeToString()), pixels(8), None)[0] for one in (untyped, moved))
    assert np.array_equal(before, after)
    weights = [{t.name for t in one.graph.initializer} for one in (untyped, moved)]
    assert len(weights[1] - weights[0]) >= 4


def test_values_that_a_score_reads_are_not_smoothed():
    """ATS weighs tokens by the norm of their values: a factor there would change what is kept, so its blocks with sites have none."""
    for method, free in (("topk", {0, 1, 2, 3}), ("ats", {0, 3}), ("pomt", {0, 2, 3})):
        untyped, plan = surgery.untyped(dense(), rules(method), True)
        found = smoothing.sites(untyped, plan.maps(untyped))
        assert {int(site.layer.split(".")[1]) for site in found if site.layer.endswith("proj")} == free, method
    untyped, plan = surgery.untyped(dense(), rules("ats", smoothing={"blocks.1.attn.proj": "n" * 64}), True)
    with pytest.raises(RecipeError) as caught:
        passes.smoothed(untyped, plan)
    assert caught.value.code == "VP138"


def test_factors_follow_the_rule():
    inputs = np.array([1.0, 16.0, 1.0, 0.0], np.float32)
    weights = np.array([1.0, 1.0, 4.0, 1.0], np.float32)
    assert smoothing.factors(inputs, weights, 0.5) == [0, 2, -1, 0]
    assert smoothing.factors(inputs, weights, 1.0) == [0, 4, 0, 0]
    assert exponents(exponent_text([0, 2, -1, 99])) == [0, 2, -1, 13]


@pytest.mark.parametrize("kind", ["max", "entropy", "percentile"])
def test_calibrators(kind):
    values = np.concatenate([np.random.default_rng(0).normal(size=(16, 1023)), np.full((16, 1), 40.0)], 1).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Sub", ["x", "r"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1024])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1024])],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    section = rules(calibration=kind, percentile=99.0).precision
    found = ranges.largest(made, ["r"], section, [{"x": values[:8]}, {"x": values[8:]}])["r"]
    assert {"max": found == 40, "entropy": 0 < found < 40, "percentile": 1 < found < 4}[kind]


def test_excluded_layers_take_the_other_type_and_kept_ones_none():
    recipe = calibrated(rules("topk", exclude=["blocks.1.*"], keep_fp32=["*.fc2"]))
    pruned, notes, check = checked(recipe)
    assert notes["precision"]["kept_fp32"] == [f"blocks.{block}.mlp.fc2" for block in range(4)]
    assert check["layers_compared"] == 9
    whole = audit.layers_by_type(checked(settled())[0])
    counted = audit.layers_by_type(pruned)
    assert counted["int8"] == whole["int8"] - 4 - 6
    assert counted["fp16"] == whole["fp16"] + 6  # q, k, v, the query that scores, projection, fc1
    assert "blocks.1.attn.qkv" not in recipe.precision.ranges


def test_a_recipe_with_ranges_needs_no_images_and_gives_the_same_graph():
    from vitprune.recipe import Recipe

    stored = Recipe.load(settled().to_dict())
    again = ranges.settle(dense(), stored, True, None)
    assert again is stored
    one, two = (surgery.rewrite(dense(), recipe, has_cls=True)[0].SerializeToString() for recipe in (settled(), again))
    assert one == two


def code_of(action):
    with pytest.raises((RecipeError, ExportError)) as caught:
        action()
    assert caught.value.cause
    assert caught.value.next_step
    return caught.value.code


def test_bad_input_is_named():
    plain = pixels(32, 7)
    flat = np.ones_like(plain) * np.arange(32, dtype=np.float32)[:, None, None, None]
    assert code_of(lambda: rules(mode="int4")) == "VP102"
    assert code_of(lambda: calibrated(rules(exclude=["blocks.9.*"]))) == "VP113"
    assert code_of(lambda: ranges.settle(dense(), rules(), True, None)) == "VP117"
    assert code_of(lambda: surgery.rewrite(dense(), rules(), has_cls=True)) == "VP117"
    assert code_of(lambda: PrunedViT(model(), rules())) == "VP117"
    assert code_of(lambda: calibrated(rules(), images=plain[:5])) == "VP136"
    assert code_of(lambda: calibrated(rules(), images=flat)) == "VP127"
    assert code_of(lambda: calibrated(rules(exclude=["*"]))) == "VP129"
    assert code_of(lambda: rules(ranges={"blocks.0.attn.qkv": 0.0})) == "VP102"
    assert code_of(lambda: rules(smoothing={"blocks.0.attn.qkv": "A-"})) == "VP102"


def test_a_range_of_zero_is_named():
    import copy

    dead = copy.deepcopy(model())
    dead.blocks[2].norm2.weight.data.zero_()
    dead.blocks[2].norm2.bias.data.zero_()
    with pytest.raises(RecipeError) as caught:
        calibrated(rules(), torchscript(dead))
    assert caught.value.code == "VP135"
    assert "blocks.2.mlp.fc1" in caught.value.message


def test_a_graph_that_is_quantised_already_is_refused():
    quantised, _, _ = surgery.rewrite(dense(), settled(), has_cls=True)
    assert code_of(lambda: refuse_quantised(quantised, rules())) == "VP339"
    assert code_of(lambda: refuse_quantised(quantised, rules().with_("precision.mode", "fp32"))) == "VP339"
    assert refuse_quantised(dense(), rules()) is None


def test_products_are_summed_in_float32_here():
    """ONNX Runtime's integer kernels saturate on CPUs without VNNI; a session of ours must not use them."""
    pruned, _, _ = surgery.rewrite(dense(), settled(rest="fp32"), has_cls=True)
    wide = onnx.ModelProto()
    wide.CopyFrom(pruned)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in pruned.graph.initializer}
    for node in list(wide.graph.node):
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            axis = next(a.i for a in node.attribute if a.name == "axis")
            scale = np.expand_dims(stored[node.input[1]], 1 - axis)
            wide.graph.initializer.append(
                numpy_helper.from_array(stored[node.input[0]].astype(np.float32) * scale, node.output[0])
            )
            wide.graph.node.remove(node)
    one, two = (parity.run(make_session(emulated(graph).SerializeToString()), pixels(4), None)[0] for graph in (pruned, wide))
    assert np.abs(one - two).max() < 1e-5
