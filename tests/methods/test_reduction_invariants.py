"""What must hold for top-k, EViT, POMT, AS-ViT and DynamicViT alike, for the reference and for the graph."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reduction_support import (
    INVARIANCE,
    TOLERANCE,
    assert_alone_equals_batch,
    assert_nested,
    has_rtx,
    images,
    listed,
    pruned,
    recipe,
    rtx_builds,
    run_graph,
    run_reference,
    session,
    small_dense,
    small_model,
)

from vitprune.graph.lowering.onnxruntime import specialise

PRUNE = {
    "topk": {"method": "topk", "stages": [1, 3, 4], "keep_rate": 0.6},
    "evit": {"method": "evit", "stages": [1, 3, 4], "keep_rate": 0.6},
    "pomt": {"method": "pomt", "stages": [2], "remove": 6},
    "asvit": {"method": "asvit", "stages": [3, 4, 5], "thresholds": [0.03, 0.04, 0.05]},
    "dynamicvit": {"method": "dynamicvit", "stages": [0, 2, 4], "predictor": "random"},
}
NOTHING = {
    "topk": {"method": "topk", "stages": [1, 3], "keep_rate": 1.0},
    "evit": {"method": "evit", "stages": [1, 3], "keep_rate": 1.0},
    "pomt": {"method": "pomt", "stages": [2], "remove": 0},
    "asvit": {"method": "asvit", "stages": [3, 4], "thresholds": -1.0},
    "dynamicvit": {"method": "dynamicvit", "stages": [0, 2], "keep_rate": 1.0, "predictor": "random"},
}
SELECTIONS = {
    "topk": ("TopK", 4),
    "evit": ("TopK", 4),
    "pomt": ("TopK", 2),
    "asvit": ("TokenSample", 2),
    "dynamicvit": ("TopK", 4),
}
METHODS = sorted(PRUNE)
# With constant counts both shape modes write the same graph (checked below), so the costly tests run it once.
FORMS = [(method, "dynamic") for method in METHODS] + [("asvit", "padded")]


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"asvit"}))
def test_constant_counts_write_one_graph_for_both_shape_modes(method):
    """Same nodes and no masks; only the declared width of the kept output differs."""
    dynamic, padded = (pruned(small_dense(), recipe(PRUNE[method], shapes)).graph for shapes in ("dynamic", "padded"))
    assert [node.SerializeToString() for node in dynamic.node] == [node.SerializeToString() for node in padded.node]
    assert {t.name: t.raw_data for t in dynamic.initializer} == {t.name: t.raw_data for t in padded.initializer}
    assert not [node.name for node in dynamic.node if "masked" in node.name or node.op_type == "TokenSample"]
    widths = [output.type.tensor_type.shape.dim[1].dim_value for output in padded.output[1:]]
    assert widths == [15 - 6] if method == "pomt" else all(widths)


@pytest.mark.parametrize(("method", "shapes"), FORMS)
def test_an_image_does_not_see_its_batch_mates(method, shapes):
    rules, x = recipe(PRUNE[method], shapes), images(4).numpy()
    logits, kept, _ = run_reference(small_model(), rules, x)
    assert_alone_equals_batch(lambda some: run_reference(small_model(), rules, some)[:2], x, logits, kept)
    runner = session(pruned(small_dense(), rules))
    found, rows = run_graph(runner, x)
    np.testing.assert_allclose(found, logits, atol=TOLERANCE, rtol=0)
    assert [listed(stage) for stage in rows] == [listed(stage) for stage in kept]
    assert_alone_equals_batch(lambda some: run_graph(runner, some), x, found, rows)
    assert_nested(kept)


@pytest.mark.parametrize("kind", ["registers", "cls_mean"])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_pruned_is_the_dense_model(method, kind):
    """The selection is in the graph and runs; it just keeps all (POMT: one patch is replaced by the mean of itself)."""
    rules, x = recipe(NOTHING[method]), images(3)
    with torch.no_grad():
        dense = small_model(kind)(x).numpy()
    logits, kept, _ = run_reference(small_model(kind), rules, x)
    model = pruned(small_dense(kind), rules, True)
    op, count = SELECTIONS[method]
    assert sum(node.op_type == op for node in model.graph.node) == count
    found, rows = run_graph(model, x)
    np.testing.assert_allclose(logits, dense, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(found, dense, atol=TOLERANCE, rtol=0)
    left = 15 if method == "pomt" else 16
    assert all(len(row) == left for stage in (*kept, *rows) for row in listed(stage))


@pytest.mark.parametrize("kind", ["registers", "cls_mean"])
@pytest.mark.parametrize("method", METHODS)
def test_layer_scale_two_prefix_tokens_head_norms_and_mean_pooling(method, kind):
    rules, x = recipe(PRUNE[method]), images(4, seed=7)
    logits, kept, _ = run_reference(small_model(kind), rules, x)
    found, rows = run_graph(pruned(small_dense(kind), rules, True), x)
    np.testing.assert_allclose(found, logits, atol=TOLERANCE, rtol=0)
    assert [listed(stage) for stage in rows] == [listed(stage) for stage in kept]
    with torch.no_grad():
        assert np.abs(small_model(kind)(x).numpy() - logits).max() > 1e-2


@pytest.mark.parametrize("method", ["pomt", "dynamicvit"])
def test_methods_that_need_no_class_token(method):
    rules, x = recipe(PRUNE[method]), images(4)
    logits, kept, _ = run_reference(small_model("mean"), rules, x)
    found, rows = run_graph(pruned(small_dense("mean"), rules), x)
    np.testing.assert_allclose(found, logits, atol=TOLERANCE, rtol=0)
    assert [listed(stage) for stage in rows] == [listed(stage) for stage in kept]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_schedule_and_batch(data):
    method = data.draw(st.sampled_from(["topk", "evit", "dynamicvit"]))
    stages = sorted(data.draw(st.sets(st.integers(0, 5), min_size=1, max_size=3)))
    count, keep = 16, []
    for _ in stages:
        keep.append(data.draw(st.integers(1, count)))
        count = keep[-1]
    prune = {"method": method, "stages": stages, "keep": keep, **({"predictor": "random"} if method == "dynamicvit" else {})}
    rules = recipe(prune, data.draw(st.sampled_from(["dynamic", "padded"])))
    x = images(data.draw(st.integers(1, 5)), seed=data.draw(st.integers(0, 99)))
    logits, kept, judge = run_reference(small_model(), rules, x)
    assert min(float(margin.min()) for margin in judge.margin) >= 0
    found, rows = run_graph(pruned(small_dense(), rules), x)
    if all(float(margin.min()) > 1e-6 for margin in judge.margin):  # a nearer call may fall either way in float32
        np.testing.assert_allclose(found, logits, atol=TOLERANCE, rtol=0)
        assert [listed(stage) for stage in rows] == [listed(stage) for stage in kept]
    assert_nested(kept)
    assert [stage.shape for stage in rows] == [(len(x), number) for number in keep]


@pytest.mark.parametrize("method", METHODS)
def test_clones_of_one_image_are_that_image(method):
    rules, x = recipe(PRUNE[method]), images(1)
    runner = session(pruned(small_dense(), rules))
    alone, _ = run_graph(runner, x)
    clones, _ = run_graph(runner, x.expand(3, -1, -1, -1))
    np.testing.assert_allclose(clones, np.repeat(alone, 3, axis=0), atol=INVARIANCE, rtol=0)


@pytest.mark.rtx
@pytest.mark.skipif(not has_rtx(), reason="the tensorrt_rtx package is not installed")
@pytest.mark.parametrize(("method", "shapes"), FORMS)
def test_tensorrt_rtx_builds_the_pruned_graph(method, shapes):
    assert rtx_builds(pruned(small_dense("registers"), recipe(PRUNE[method], shapes))) == []


@pytest.mark.rtx
@pytest.mark.skipif(not has_rtx(), reason="the tensorrt_rtx package is not installed")
def test_tensorrt_rtx_builds_the_batch_path_of_asvit():
    assert rtx_builds(pruned(small_dense(), recipe({**PRUNE["asvit"], "infer": "batch_topk"}))) == []


@pytest.mark.parametrize("kind", ["plain", "registers"])
@pytest.mark.parametrize("method", METHODS)
def test_graph_specialised_for_onnx_runtime_gives_the_same(method, kind):
    x = images(4, seed=7)
    model = pruned(small_dense(kind), recipe(PRUNE[method]))
    logits, kept = run_graph(model, x)
    fused, facts = specialise(model, keep_outputs=True)
    found, rows = run_graph(fused, x)
    np.testing.assert_allclose(found, logits, atol=TOLERANCE, rtol=0)
    assert [listed(stage) for stage in rows] == [listed(stage) for stage in kept]
    assert facts["attention"] >= 5


def test_specialised_graph_for_one_image_survives_a_stage_without_patches():
    """What an emptied stage leaves behind is a pad slot, which a later threshold must not bring back."""
    rules = recipe({**PRUNE["asvit"], "thresholds": [1.0, -1.0, -1.0]}, batch="1")
    x = images(1)
    model = pruned(small_dense(), rules)
    logits, kept = run_graph(model, x)
    assert all((stage == -1).all() for stage in kept)
    found, rows = run_graph(specialise(model, keep_outputs=True)[0], x)
    np.testing.assert_allclose(found, logits, atol=TOLERANCE, rtol=0)
    assert all((stage == -1).all() for stage in rows)
