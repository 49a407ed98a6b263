"""Half types: the graph, the reference, the gates, and defects planted in each."""

import io
import sys
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import vitprune
from helpers import tiny
from vitprune import cli
from vitprune.bundle import Manifest, open_bundle, seal
from vitprune.errors import ExportError, RecipeError, TargetError
from vitprune.exporting import parity
from vitprune.exporting.given_half import compare_given
from vitprune.exporting.precision import settle
from vitprune.graph import surgery
from vitprune.graph.lowering.rounding import emulated
from vitprune.graph.precision import audit, casting
from vitprune.graph.widening import widened
from vitprune.pipelines import validate
from vitprune.recipe import Recipe
from vitprune.support.precision import OVERFLOW, ROUNDOFF, layer_names
from vitprune.validation.compare import compare, decisions_gate
from vitprune.validation.precision import against_float32, gates_in_force
from vitprune.vit.precision import HalfLinear
from vitprune.vit.pruned import PrunedViT

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))

MODES = ("fp16", "bf16")
PRUNE = {
    "ats": {"stages": [1, 2], "num_samples": 40},
    "ats_merge": {"stages": [1, 2], "num_samples": 40, "dropped": "merge"},
    "asvit": {"stages": [3], "thresholds": [0.015]},
    "avit": {"compact_at": [2, 3], "gate_scale": 4.0, "gate_center": 1.0},
    "evit": {"stages": [1, 2], "keep_rate": 0.7},
    "topk": {"stages": [1, 2], "keep_rate": 0.7},
    "pomt": {"stages": [1], "remove": 20},
    "tome": {"r": 6},
    "tome_threshold": {"stages": [1, 2]},
    "ward_merge": {"stages": [1, 2]},
}


def recipe(method="ats", mode="fp16", **precision):
    return Recipe.load({"prune": {"method": method, **PRUNE[method]}, "precision": {"mode": mode, **precision}})


def torchscript(model):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.zeros(2, 3, 64, 64),), file, dynamo=False, opset_version=18, input_names=["image"],
            output_names=["logits"], dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


@cache
def model():
    return tiny()


@cache
def dense():
    return torchscript(model())


def pixels(count=16, seed=5):
    x = torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    return (x + 2 * torch.nn.functional.interpolate(x[:, :, ::16, ::16], size=64)).numpy()


def samples(count=16):
    from vitprune.data.images import Images

    return Images(pixels(count), None, "test")


def checked(rules, module=None, graph=None):
    """Export without the exporter: rewritten graph against the reference, as `export` does it."""
    module, graph = module or model(), graph or dense()
    oracle = PrunedViT(module, rules).eval()
    pruned, _, notes = surgery.rewrite(graph, rules, has_cls=True)
    arrays = parity.reference_arrays(oracle, samples(), parity.module_logits(module, pixels()), None)
    return pruned, notes, parity.check(pruned, arrays, rules, oracle.geometry, oracle)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", PRUNE)
def test_graph_and_reference_agree(method, mode):
    pruned, notes, check = checked(recipe(method, mode))
    counted = audit.layers_by_type(pruned)
    assert counted[mode] >= 4 * 8  # per block: q, k, v, two products, projection and the MLP's two
    assert set(counted) == {mode, "fp32"}
    assert notes["precision"]["layers"] == counted
    assert check["logits_max_abs"] > 0, "a reference in float32 would be told from this graph"
    assert all(site["illegal_flips"] == 0 for site in check["sites"])
    assert audit.half_decisions(pruned) == []
    assert onnx.checker.check_model(pruned, full_check=True) is None


@pytest.mark.parametrize("mode", MODES)
def test_a_half_bundle_has_half_the_weights(mode):
    half, _, _ = surgery.rewrite(dense(), recipe(mode=mode), has_cls=True)
    full, _, _ = surgery.rewrite(dense(), recipe(mode="fp32"), has_cls=True)
    assert half.ByteSize() < 0.62 * full.ByteSize()  # nodes weigh as much as before, which counts in a model this small
    assert [value.type.tensor_type.elem_type for value in (*half.graph.input, half.graph.output[0])] == [TensorProto.FLOAT] * 2


def test_the_fp16_graph_runs_as_it_is():
    """ONNX Runtime emulates float16 node by node; that and our rounding form are the same graph."""
    from vitprune.backends.onnxruntime import make_session

    pruned, _, _ = surgery.rewrite(dense(), recipe("topk"), has_cls=True)
    ours = parity.run(make_session(emulated(pruned).SerializeToString()), pixels(4), None)[0]
    theirs = parity.run(make_session(pruned.SerializeToString()), pixels(4), None)[0]
    assert np.abs(ours - theirs).max() < 12 * ROUNDOFF["fp16"] * max(1, np.abs(ours).max())


def test_the_reference_rounds_where_it_says():
    linear = torch.nn.Linear(64, 8)
    x = torch.randn(5, 64)
    found = HalfLinear(linear, torch.float16)(x)
    exact = torch.nn.functional.linear(x.half().double(), linear.weight.half().double(), linear.bias.half().double())
    assert found.dtype == torch.float16
    assert (
        torch.equal(found, exact.float().half())
        or (found.double() - exact).abs().max() < 2 * ROUNDOFF["fp16"] * exact.abs().max()
    )
    half = PrunedViT(model(), recipe()).eval()(torch.from_numpy(pixels(2)))
    full = PrunedViT(model(), recipe(mode="fp32")).eval()(torch.from_numpy(pixels(2)))
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)


def test_float32_is_what_it_was():
    from vitprune.vit.blocks import attention, weigh

    q, k, v = (torch.randn(2, 3, 7, 4) for _ in range(3))
    assert torch.equal(attention(q, k, None), (q @ k.transpose(-2, -1)).softmax(dim=-1))
    assert torch.equal(weigh(attention(q, k, None), v), attention(q, k, None) @ v)


def test_the_same_graph_in_another_precision_is_refused():
    """The parity check tells a bfloat16 graph from a float16 reference: its tolerance is worth something."""
    oracle = PrunedViT(model(), recipe()).eval()
    arrays = parity.reference_arrays(oracle, samples(), parity.module_logits(model(), pixels()), None)
    coarse, _, _ = surgery.rewrite(dense(), recipe(mode="bf16"), has_cls=True)
    with pytest.raises(ExportError) as caught:
        parity.check(coarse, arrays, recipe(), oracle.geometry, oracle)
    assert caught.value.code == "VP330"


@pytest.mark.parametrize("spoil", ["blocks.1.mlp.fc2", "blocks.0.attn.proj"])
def test_a_wrong_weight_is_caught_in_half(spoil):
    rules = recipe()
    pruned, _, _ = surgery.rewrite(dense(), rules, has_cls=True)
    oracle = PrunedViT(model(), rules).eval()
    weight = model().get_submodule(spoil).weight.detach().numpy().T.astype(np.float16)
    for tensor in pruned.graph.initializer:
        if list(tensor.dims) == list(weight.shape) and np.array_equal(numpy_helper.to_array(tensor), weight):
            tensor.CopyFrom(numpy_helper.from_array((weight * np.float16(1.25)), tensor.name))
            break
    else:
        raise AssertionError(spoil)
    arrays = parity.reference_arrays(oracle, samples(), parity.module_logits(model(), pixels()), None)
    with pytest.raises(ExportError):
        parity.check(pruned, arrays, rules, oracle.geometry, oracle)


@pytest.mark.parametrize("case", ["legal", "illegal", "no number", "all"])
def test_an_image_alone_whose_decision_flips(case, monkeypatch):
    """ToMe's reference follows no other decisions: a legal flip leaves nothing to compare, and another image is taken for it."""
    rules = recipe("tome")
    oracle = PrunedViT(model(), rules).eval()
    pruned, _, _ = surgery.rewrite(dense(), rules, has_cls=True)
    arrays = parity.reference_arrays(oracle, samples(), parity.module_logits(model(), pixels()), None)
    block = oracle.sites[0].block
    arrays[f"margin_{block}"][slice(None) if case == "all" else 0] = np.inf if case == "illegal" else 0.0
    run, alone = parity.run, []

    def flipped(session, images, static, wanted=None):
        logits, *kept = run(session, images, static, wanted)
        if len(images) == 1:
            alone.append(images)
            if case == "no number":
                logits = np.full_like(logits, np.nan)
            elif len(alone) == 1 or case == "all":
                kept[0] = kept[0].copy()
                kept[0][0, 0] = next(patch for patch in range(oracle.geometry.patches) if patch not in kept[0][0])
        return [logits, *kept]

    monkeypatch.setattr(parity, "run", flipped)
    if case == "legal":
        parity.check(pruned, arrays, rules, oracle.geometry, oracle)
        assert len(alone) == 1 + parity.ALONE
    else:
        with pytest.raises(ExportError, match="disagree") as caught:
            parity.check(pruned, arrays, rules, oracle.geometry, oracle)
        said = {"illegal": "decisions", "no number": "logits_max_abs nan", "all": "no image alone was left to compare"}
        assert said[case] in caught.value.cause


def score_in_half(pruned, label):
    """The finished model with one node of the score branch cast to fp16 on purpose."""
    name = next(node.name for node in pruned.graph.node if node.name.endswith(label))
    return casting.cast(pruned, {name}, "fp16")


@pytest.mark.parametrize("label", ["prune/cls_logits", "prune/cls_row", "prune/score/all"])
def test_a_score_branch_in_fp16_is_found(label):
    pruned, _, _ = surgery.rewrite(dense(), recipe(), has_cls=True)
    wrong = score_in_half(pruned, label)
    assert any(label in node for node in audit.half_decisions(wrong))


def deciders(pruned):
    """Names of the nodes that compute what a decision reads, one per decision, nearest first."""
    makers = {name: node for node in pruned.graph.node for name in node.output}
    computes = {
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Sigmoid",
        "Sqrt",
        "Softmax",
        "ReduceSum",
        "ReduceMax",
        "ReduceMean",
        "MatMul",
        "Where",
        "Neg",
    }
    integers = {tensor.name for tensor in pruned.graph.initializer if tensor.data_type in (TensorProto.INT64, TensorProto.BOOL)}
    for node in pruned.graph.node:
        above = makers.get(node.input[0]) if node.op_type in audit.DECIDES else None
        while above is not None and above.op_type in audit.MOVES:
            above = makers.get(above.input[0])
        axes = above is not None and above.op_type.startswith("Reduce")
        if above is not None and above.op_type in computes and (axes or not integers & set(above.input)):
            yield above.name


@pytest.mark.parametrize("method", PRUNE)
def test_every_methods_own_decision_in_fp16_is_found(method):
    pruned, _, _ = surgery.rewrite(dense(), recipe(method), has_cls=True)
    assert audit.half_decisions(pruned) == []
    named = list(deciders(pruned))
    assert named
    for name in (named[0], named[-1]):
        assert name in audit.half_decisions(casting.cast(pruned, {name}, "fp16"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("half") / "bundle"
    rules = recipe().to_dict()
    rules["validate"]["samples"] = 8
    return vitprune.export(model(), Recipe.load(rules), path)


def test_validate_refuses_a_score_branch_in_fp16(bundle, tmp_path):
    import shutil

    assert cli.run(["validate", str(bundle.path), "--quiet", "--reference", "stored"]) == 0
    shutil.copytree(bundle.path, tmp_path / "b")
    spoilt = score_in_half(onnx.load(tmp_path / "b" / "model.onnx"), "prune/cls_row")
    onnx.save(spoilt, tmp_path / "b" / "model.onnx")
    seal(tmp_path / "b", Manifest.model_validate_json((tmp_path / "b" / "manifest.json").read_text()))
    verdict = validate(open_bundle(tmp_path / "b"), reference="stored")
    assert [gate.name for gate in verdict.gates if not gate.passed] == ["decision_types"]
    assert cli.run(["validate", str(tmp_path / "b"), "--quiet", "--reference", "stored"]) == 1


def overflowing():
    """The tiny model with one MLP whose hidden numbers are beyond fp16, and whose result is as before."""
    import copy

    spoilt = copy.deepcopy(model())
    spoilt.blocks[2].mlp.fc1.bias.data[3] += 9e4
    spoilt.blocks[2].mlp.fc2.weight.data[:, 3] *= 1e-5
    return spoilt


def test_overflow_is_found_named_and_kept_out():
    module = overflowing()
    graph = torchscript(module)
    rules, beyond = settle(graph, recipe("topk"), True, pixels())
    assert set(beyond) == {"blocks.2.mlp.fc1", "blocks.2.mlp.fc2"}
    assert min(beyond.values()) > OVERFLOW["fp16"]
    assert set(rules.precision.keep_fp32) == set(beyond)
    _, notes, check = checked(rules, module, graph)
    assert check["logits_max_abs"] < 0.05
    assert notes["precision"]["kept_fp32"] == ["blocks.2.mlp.fc1", "blocks.2.mlp.fc2"]
    assert settle(graph, recipe("topk", "bf16"), True, pixels())[1] == {}
    with pytest.raises(ExportError):  # not looked for, the weight itself does not fit
        surgery.rewrite(graph, recipe("topk"), has_cls=True)


def test_keep_fp32_keeps_layers():
    rules = recipe("topk", keep_fp32=["blocks.1.*", "*.fc2"])
    pruned, notes, _ = checked(rules)
    assert notes["precision"]["kept_fp32"] == [n for n in layer_names(4) if n.startswith("blocks.1.") or n.endswith("fc2")]
    whole, _, _ = surgery.rewrite(dense(), recipe("topk"), has_cls=True)
    assert audit.layers_by_type(pruned)["fp16"] < audit.layers_by_type(whole)["fp16"]


def test_bad_input_is_named():
    with pytest.raises(RecipeError) as unknown:
        recipe(mode="fp7")
    assert unknown.value.code == "VP102"
    with pytest.raises(RecipeError) as lost:
        surgery.rewrite(dense(), recipe(keep_fp32=["blocks.9.*"]), has_cls=True)
    assert lost.value.code == "VP113"
    assert "blocks.0.attn.qkv" in lost.value.cause


def test_build_engine_insists_on_the_precision(bundle, capsys):
    from vitprune import targets
    from vitprune.engines.requirements import require_precision

    assert cli.run(["build-engine", str(bundle.path), "-t", "rtx", "--precision", "bf16", "--quiet"]) == 2
    assert "VP116" in capsys.readouterr().err
    with pytest.raises(TargetError) as lacking:
        require_precision(targets.load("jetson-orin"), "fp16", "fp8")
    assert lacking.value.code == "VP246"
    with pytest.raises(RecipeError):
        require_precision(targets.load("rtx"), "fp16", "fp17")
    require_precision(targets.load("jetson-orin"), "fp16", "fp16")


@pytest.mark.parametrize("mode", MODES)
def test_graphs_in_a_half_type_from_elsewhere(mode):
    """A graph whose every weight and tensor is half, inputs included, is taken up in float32."""
    plain, kind = dense(), casting.TYPES[mode]
    half = onnx.ModelProto()
    half.CopyFrom(plain)
    for tensor in half.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(casting.typed(tensor, mode, tensor.name))
    for node in half.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(casting.typed(attribute.t, mode, attribute.t.name))
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = kind
    del half.graph.value_info[:]
    taken = widened(half)
    assert audit.types(taken) == {}
    assert widened(plain) is plain
    from vitprune.backends.onnxruntime import make_session

    logits = parity.run(make_session(taken.SerializeToString()), pixels(4), None, ["logits"])[0]
    found = compare_given(half, logits, pixels(4), None, ["logits"])
    assert found["types"] == [mode]
    assert found["compared"] is (mode == "fp16")
    if mode == "fp16":
        with pytest.raises(ExportError) as caught:
            compare_given(half, logits + 0.5, pixels(4), None, ["logits"])
        assert caught.value.code == "VP319"


def test_emulation_rounds():
    """Planted: without the Casts the rounding form would compute in float32, and nobody would see the type's errors."""
    image, big = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4]), np.full((4, 4), 1.0, np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")]
    graph = helper.make_graph(
        nodes, "g", [image], [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4])], [numpy_helper.from_array(big, "w")]
    )
    graph.node.append(helper.make_node("Identity", ["y"], ["z"], name="i"))
    plain = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    from vitprune.backends.onnxruntime import make_session

    x = np.array([[1.0, 2.0**-12, 0, 0]], np.float32)
    for mode, seen in (("fp16", 1.0), ("bf16", 1.0)):
        half = casting.cast(plain, {"m"}, mode)
        assert make_session(emulated(half).SerializeToString()).run(None, {"x": x})[0][0, 0] == seen
    assert make_session(plain.SerializeToString()).run(None, {"x": x})[0][0, 0] > 1.0


def test_gates_against_fp32_are_decided_by_intervals():
    rules = recipe().precision
    rng = np.random.default_rng(0)
    full = rng.normal(size=(4000, 5)).astype(np.float32)
    labels = full.argmax(1)
    alike = against_float32(full, full, labels, rules)
    assert [(gate.name, gate.passed) for gate in alike] == [("precision_agreement", True), ("precision_drop", True)]
    few = against_float32(full[:20], full[:20], labels[:20], rules)
    assert [(gate.passed, gate.undecided, gate.more is not None and gate.more > 0) for gate in few] == [(False, True, True)] * 2
    coarse = np.roll(full, 1, axis=1)
    coarse[:3600] = full[:3600]
    assert [(gate.passed, gate.undecided) for gate in against_float32(coarse, full, labels, rules)] == [(False, False)] * 2
    assert against_float32(full, full, None, rules)[0].name == "precision_agreement"
    off = rules.model_copy(update={"agreement": None, "drop": None})
    assert against_float32(coarse, full, labels, off) == []


def test_stored_samples_make_no_claim_about_what_the_type_costs(bundle):
    verdict = validate(bundle, reference="stored")
    assert {gate.name for gate in verdict.gates} == {"decisions", "decision_types", "logits_max_abs", "top1_agreement"}


def test_the_engine_for_onnxruntime_says_that_it_emulates(bundle, tmp_path):
    from vitprune.backends import onnxruntime as backend

    request = {"model": str(bundle.model_path), "output": str(tmp_path / "engine.onnx"), "plugin": "none"}
    facts = backend.build(request, lambda text: None)
    assert "rounded where the graph says" in facts["precision_emulated"]
    stored = bundle.samples()
    ours = parity.run(backend.make_session(tmp_path / "engine.onnx"), stored["images"], None)[0]
    plain = backend.Session(bundle).run(stored["images"]).logits
    assert np.abs(ours - plain).max() < 8 * ROUNDOFF["fp16"] * np.abs(plain).max()


def test_the_network_of_an_engine_must_be_in_the_type_asked_for():
    from vitprune.backends.tensorrt_rtx import _require_type
    from vitprune.errors import BuildError

    _require_type("fp16", {"fp16": 3, "fp32": 2})
    _require_type("fp32", {"fp32": 2})
    for asked, counted in (("fp16", {"fp32": 5}), ("fp16", {"bf16": 1, "fp16": 4}), ("fp32", {"fp16": 4, "fp32": 1})):
        with pytest.raises(BuildError) as caught:
            _require_type(asked, counted)
        assert caught.value.code == "VP512"


def test_a_followed_image_counts_with_the_decisions_it_was_computed_with():
    from vitprune.backends import Result

    kept = np.array([[0, 1], [0, 1]])
    reference = {
        "logits": np.array([[1.0, 0.0], [1.0, 0.0]]), "kept_1": kept, "margin_1": np.array([[9.0, 9, 9], [9, 1e-3, 1e-3]]),
        "logits_followed": np.array([[np.nan, np.nan], [0.0, 1.0]]),
    }  # fmt: skip
    ran = Result(np.array([[1.0, 0.0], [0.0, 1.001]], np.float32), [np.array([[0, 1], [0, 2]])])
    gates = recipe().gates(1.0)
    found = compare(ran, reference, [1], gates)
    assert (found.logits_compared, found.top1_agreement, found.sites[0].legal_flips) == (2, 1.0, 2)
    assert found.logits_max_abs == pytest.approx(1e-3, rel=1e-3)
    del reference["logits_followed"]
    alone = compare(ran, reference, [1], gates)
    assert (alone.logits_compared, alone.top1_agreement) == (1, 0.5)
    wrong = compare(Result(ran.logits, [np.array([[0, 1], [1, 2]])]), reference, [1], gates)
    assert wrong.sites[0].illegal_flips == 1  # patch 0, whose margin is 9


@pytest.mark.parametrize(
    ("margin", "logit", "hidden", "passes"),
    [(1e-3, 2.0, True, True), (9.0, 2.0, True, False), (1e-3, 2.0, False, False), (1e-3, np.nan, True, False)],
    ids=["may have differed", "sure", "nothing hidden", "no number"],
)
def test_answers_apart_where_an_unlisted_decision_may_have_differed(margin, logit, hidden, passes):
    """Who joined whom is in no list. Such an image is left out, and said to be; one whose decisions were sure is not."""
    from vitprune.backends import Result
    from vitprune.validation.compare import gate_list

    kept, near = np.array([[0, 1], [0, 1]]), np.array([[9.0, 9, 9], [9, margin, 9]])
    reference = {"logits": np.array([[1.0, 0.0], [1.0, 0.0]]), "kept_1": kept, "margin_1": near}
    gates = recipe().gates(1.0)
    found = compare(Result(np.array([[1.0, 0.0], [logit, 0.0]]), [kept]), reference, [1], gates, hidden)
    gate = next(one for one in gate_list(found, gates) if one.name == "logits_max_abs")
    assert gate.passed is passes
    assert (found.logits_compared == 1) is passes
    assert gate.note.startswith("over 1 images: decisions of 1 differ, or may") is passes


def test_a_graph_in_another_type_is_not_excused_by_what_is_not_listed():
    """Planted: bfloat16 for float16 in a method whose partners are in no list."""
    with pytest.raises(ExportError, match="disagree"):
        rules = recipe("tome_threshold")
        oracle = PrunedViT(model(), rules).eval()
        arrays = parity.reference_arrays(oracle, samples(), parity.module_logits(model(), pixels()), None)
        coarse, _, _ = surgery.rewrite(dense(), recipe("tome_threshold", "bf16"), has_cls=True)
        parity.check(coarse, arrays, rules, oracle.geometry, oracle)


def test_a_gate_that_is_off_is_found_within_the_margin_of_halting_scores():
    """A-ViT's margin follows the gate's size. Planted: a graph whose gate is off by two percent."""
    from vitprune import methods
    from vitprune.methods.base import Geometry

    sizes = Geometry(**{**vars(PrunedViT(model(), recipe("avit")).geometry), "depth": 8})
    scales = [
        methods.get("avit").score_scale(recipe("avit").with_("prune.gate_center", value).prune, sizes)
        for value in (1.0, 5.0, 75.0)
    ]
    assert scales == [1.0, 4.375, 65.625]
    rules = recipe("avit").with_("prune.gate_scale", 20.0).with_("prune.gate_center", 8.0)
    oracle = PrunedViT(model(), rules).eval()
    arrays = parity.reference_arrays(oracle, samples(), parity.module_logits(model(), pixels()), None)
    right, _, _ = surgery.rewrite(dense(), rules, has_cls=True)
    assert all(site["illegal_flips"] == 0 for site in parity.check(right, arrays, rules, oracle.geometry, oracle)["sites"])
    wrong, _, _ = surgery.rewrite(dense(), rules.with_("prune.gate_center", 8.16), has_cls=True)
    with pytest.raises(ExportError, match="disagree") as caught:
        parity.check(wrong, arrays, rules, oracle.geometry, oracle)
    assert "decisions" in caught.value.cause


def test_a_gate_that_cannot_fail_is_said_and_proves_nothing_alone():
    """A-ViT in bf16 behind a large gate, as with the published centre of 75 and 12 blocks: no halting score is as wide as the margin."""
    from vitprune.backends import Result

    rules = recipe("avit", "bf16").with_("prune.gate_center", 90.0).with_("prune.gate_scale", 100.0)
    oracle = PrunedViT(model(), rules).eval()
    arrays = parity.reference_arrays(oracle, samples(8), parity.module_logits(model(), pixels(8)), None)
    blocks, gates = [site.block for site in oracle.sites], gates_in_force(rules, arrays["logits"], oracle.geometry)
    kept = [arrays[f"kept_{block}"].copy() for block in blocks]
    alike = decisions_gate(compare(Result(arrays["logits"], kept), arrays, blocks, gates), gates)
    assert alike.passed
    assert "no decision could have failed" in alike.text()
    assert "the logits carry the proof" in alike.text()
    assert alike.document()["note"] == alike.note
    # Planted: the graph lost a patch of one image. That is within the margin, and A-ViT's reference cannot follow it.
    kept[0][0, 0] = -1
    found = compare(Result(arrays["logits"], kept), arrays, blocks, gates)
    wrong = decisions_gate(found, gates)
    assert (wrong.passed, wrong.seen, found.sites[0].legal_flips) == (False, 0, 1)
    assert "1 images that differ are compared by nothing else" in wrong.text()
    sharper = gates.model_copy(update={"flip_margin": 0.01})
    assert decisions_gate(compare(Result(arrays["logits"], kept), arrays, blocks, sharper), sharper).seen == 1


@pytest.mark.parametrize(("method", "blocks"), [("topk", {0, 3}), ("avit", {0, 1})])
def test_softmax_in_half_where_nothing_decides(method, blocks):
    """Blocks that prune keep theirs; a reference that does not round there is told from the graph."""
    rules = recipe(method, softmax="half")
    pruned, _, check = checked(rules)
    known, plain = audit.types(pruned), audit.types(surgery.rewrite(dense(), recipe(method), has_cls=True)[0])
    named = {f"vitprune/block{number}/attn/probabilities" for number in range(4)}
    outputs = {node.output[0]: int(node.name[len("vitprune/block")]) for node in pruned.graph.node if node.name in named}
    assert {number for name, number in outputs.items() if name in known} == blocks
    assert not set(outputs) & set(plain)
    assert audit.half_decisions(pruned) == []
    assert all(site["illegal_flips"] == 0 for site in check["sites"])


def test_the_reference_rounds_what_goes_into_a_half_softmax():
    from vitprune.vit.blocks import attention

    q, k = torch.randn(1, 1, 4, 8).half() * 3, torch.randn(1, 1, 6, 8).half() * 3
    bias = torch.linspace(0, 1, 6)[None, None, None]
    found = attention(q, k, bias, torch.float16)
    logits = ((q.float() @ k.float().transpose(-2, -1)).half().float() + bias).half().float()
    assert torch.equal(found, logits.softmax(-1).half().float())
    assert not torch.equal(found, attention(q, k, bias))


def test_softmax_in_half_is_refused_where_every_block_merges():
    with pytest.raises(RecipeError) as caught:
        surgery.rewrite(dense(), recipe("tome", softmax="half"), has_cls=True)
    assert caught.value.code == "VP115"
    assert caught.value.next_step
