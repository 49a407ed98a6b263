"""ToMe: golden of the official code, equations, both implementations, cost, refusals."""

import merging_support as support
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merging_support import Graph, Judge

from vitprune.errors import RecipeError
from vitprune.graph.surgery import forbidden, rewrite
from vitprune.methods import cost, get
from vitprune.methods._merging import rule as matching
from vitprune.methods.base import Geometry
from vitprune.methods.tome import rule as tome
from vitprune.methods.tome.keys import schedule

DEIT_S = Geometry(12, 196, 1, 384, 6, 1536, embed_macs=196 * 768 * 384, classes=1000)
TINY = Geometry(4, 36, 1, 32, 4, 128)


def parameters(**keys):
    return support.recipe({"method": "tome", **keys}).prune


def counts(geometry, **keys):
    return [site.limit for site in get("tome").sites(parameters(**keys), geometry)]


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("tome_r4_prop", "reference"),
        ("tome_r4_prop", "graph dynamic"),
        ("tome_r4_prop", "graph single"),
        ("tome_r4_noprop", "reference"),
        ("tome_r4_noprop", "graph padded"),
    ],
)
def test_golden(name, side):
    data = support.golden(name)
    shapes = "padded" if "padded" in side else "dynamic"
    rules = support.recipe(
        {"method": "tome", "r": 4, "prop_attn": name.endswith("r4_prop"), "trace": True},
        shapes,
        "1" if "single" in side else "1:4:8",
    )
    run = Judge(support.golden_model(), rules) if side == "reference" else Graph(support.golden_dense(), rules)
    if "single" in side:
        parts = [run(data["x"][i : i + 1]) for i in range(4)]
        logits = np.concatenate([part[0] for part in parts])
        kept = [np.concatenate([part[1][site] for part in parts]) for site in range(12)]
        groups = [np.concatenate([part[2][site] for part in parts]) for site in range(12)]
    else:
        logits, kept, groups = support.assert_batch_invariant(run, data["x"])
        groups = run(data["x"])[2]
    np.testing.assert_allclose(logits, data["logits"], atol=1e-4, rtol=0)
    for site in range(12):
        assert kept[site].shape == (4, 60 - 4 * site)
        for image in range(4):
            rows = data["group"][site, image, 1:] - 1  # golden rows count CLS, which is alone in row 0
            np.testing.assert_array_equal(kept[site][image][rows], groups[site][image])
            members = [(groups[site][image] == patch).sum() for patch in kept[site][image]]
            assert data["sizes"][site, image, 0] == 1
            np.testing.assert_array_equal(data["sizes"][site, image, 1 : len(members) + 1], members)


@pytest.mark.parametrize("name", ["tome_r4_prop", "tome_r4_noprop"])
def test_golden_margins(name):
    data = support.golden(name)
    judge = Judge(support.golden_model(), support.recipe({"method": "tome", "r": 4, "prop_attn": name.endswith("r4_prop")}))
    judge(data["x"])
    for site, margin in enumerate(judge.model.margin):
        np.testing.assert_allclose(margin.amin(dim=1).numpy(), data["margin"][site], atol=1e-5)


def test_oracle_of_one_site():
    """Six patches behind CLS: B = 0, 2, 4 and A = 1, 3, 5 (token rows are odd and even)."""
    vectors = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.2, 0.8], [-1.0, 0.0], [1.0, 1.0]]])
    unit = matching.metric(vectors[:, None])
    valid = torch.ones(1, 6, dtype=torch.bool)
    best, partner, gap = matching.match(unit, valid, prefix=1)
    assert best.isinf().tolist() == [[True, False] * 3]
    assert partner[0, [1, 3, 5]].tolist() == [0, 2, 0]  # 5 is as near to 0 as to 2: the lower one
    assert gap[0, 5] == pytest.approx(0, abs=1e-6)
    joins, _ = tome.select(best, gap, 2)
    assert joins.nonzero()[:, 1].tolist() == [1, 3]
    assert matching.order(joins, 1).tolist() == [[5, 0, 2, 4]]
    best, _, _ = matching.match(unit, valid, prefix=2)
    assert best.isinf().tolist() == [[False, True] * 3]


def test_key_norm_enters_the_metric():
    """The metric is what attention compares: exchanging k norm for none changes who merges."""
    x = support.images(3)
    with_norm = Judge(support.small("scaled"), support.recipe({"method": "tome", "r": 6}))
    attention = support.small("scaled").blocks[0].attn
    with_norm(x)
    with torch.no_grad():
        model = support.small("scaled")
        h = model.blocks[0].norm1(model.norm_pre(model._pos_embed(model.patch_embed(x))))
        key = attention.qkv(h).reshape(3, 37, 3, 4, 8).permute(2, 0, 3, 1, 4)[1]
        kept = {}
        for name, compared in (("after", attention.k_norm(key)), ("before", key)):
            best, _, gap = matching.match(matching.metric(compared[:, :, 1:]), torch.ones(3, 36, dtype=torch.bool), 1)
            kept[name] = matching.order(tome.select(best, gap, 6)[0], 1)
    assert torch.equal(with_norm.model.kept[0], kept["after"])
    assert not torch.equal(kept["after"], kept["before"])


@pytest.mark.parametrize("variant", support.VARIANTS)
def test_families(variant):
    judge, graph = support.both(variant, {"method": "tome", "r": [9, 0, 5, 30], "trace": True})
    x = support.images(3)
    expected = judge(x)
    support.assert_same(expected, graph(x))
    support.assert_partition(expected[1], expected[2])
    assert [kept.shape[1] for kept in expected[1]] == [27, 27, 22, 11]


@pytest.mark.parametrize("variant", support.VARIANTS)
def test_nothing_to_merge_is_dense(variant):
    judge, graph = support.both(variant, {"method": "tome", "r": 0})
    x = support.images(2)
    for run in (judge, graph):
        logits, kept, _ = run(x)
        np.testing.assert_allclose(logits, support.dense_logits(variant, x), atol=1e-5, rtol=0)
        assert all(np.array_equal(rows, np.tile(np.arange(36), (2, 1))) for rows in kept)


def test_merging_equal_patches_is_dense():
    """Each pair of equal neighbours merges, a lossless step through all inserted nodes: with proportional attention nothing changes."""
    model, x = support.twins()
    with torch.no_grad():
        dense = model(x).numpy()
    for stages in ([0], [2]):
        for proportional, lossless in ((True, True), (False, False)):
            rules = support.recipe({"method": "tome", "stages": stages, "r": 18, "prop_attn": proportional})
            for run in (Judge(model, rules), Graph(support.twins_dense(), rules)):
                logits, kept, _ = run(x)
                assert all(set(row) == set(range(0, 36, 2)) for row in kept[0])
                assert (np.abs(logits - dense).max() < 1e-5) == lossless


def test_mean_pooling_counts_a_merged_row_as_often_as_it_has_patches():
    """All patches equal and merged: the mean over rows is the dense mean only when sizes weigh it."""
    model = support.small("mean")
    judge, graph = support.both("mean", {"method": "tome", "stages": [3], "r": 9, "prop_attn": True})
    x = support.images(3)
    expected, found = judge(x)[0], graph(x)[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    size = judge.model.extra["size"]
    assert size.sum(dim=1).tolist() == [36.0] * 3
    rows = {}
    hook = model.norm.register_forward_hook(lambda module, inputs, output: rows.update(x=output))
    judge(x)
    hook.remove()
    with torch.no_grad():
        pooled = (rows["x"] * size[:, :, None]).sum(dim=1) / 36
        np.testing.assert_allclose(model.head(model.fc_norm(pooled)).numpy(), expected, atol=1e-5)
        unweighted = model.head(model.fc_norm(rows["x"].mean(dim=1))).numpy()
    assert np.abs(unweighted - expected).max() > 1e-3


@settings(max_examples=4, deadline=None)
@given(
    r=st.lists(st.integers(0, 20), min_size=4, max_size=4), batch=st.integers(1, 3), seed=st.integers(0, 99), pads=st.booleans()
)
def test_graph_equals_reference(r, batch, seed, pads):
    judge, graph = support.both("plain", {"method": "tome", "r": r, "trace": True}, "padded" if pads else "dynamic")
    x = support.images(batch, seed)
    expected = support.assert_batch_invariant(judge, x)
    support.assert_batch_invariant(graph, x)
    support.assert_same(expected, graph(x))
    support.assert_partition(expected[1], expected[2])


def test_prefix_rows_stay_in_front():
    rows = {}
    model = support.small("many_registers")
    hook = model.norm.register_forward_hook(lambda module, inputs, output: rows.update(x=inputs[0]))
    judge = Judge(model, support.recipe({"method": "tome", "stages": [3], "r": 18}))
    x = support.images(2)
    judge(x)
    merged = rows["x"]
    support.dense_logits("many_registers", x)
    hook.remove()
    assert merged.shape[1] == 5 + 18
    torch.testing.assert_close(merged[:, :5], rows["x"][:, :5], atol=1e-5, rtol=0)


@pytest.mark.parametrize("opset", [17, 18, 20])
def test_opsets_and_operators(opset):
    """No scatter with a reduction, none of the operators that builders refuse, no function, at any opset a recipe may ask for."""
    rules = support.recipe({"method": "tome", "r": 6}, opset=opset)
    model = rewrite(support.small_dense(opset=min(opset, 18)), rules)[0]
    used = {node.op_type for node in model.graph.node if node.name.startswith("vitprune")}
    assert {"TopK", "ArgMax", "GatherND"} <= used
    assert used.isdisjoint({"OneHot", "NonZero", "CumSum"})
    assert not forbidden(model)
    assert not model.functions
    logits = support.session(model).run(["logits"], {"image": support.images(2).numpy()})[0]
    np.testing.assert_allclose(logits, Judge(support.small(), rules)(support.images(2))[0], atol=1e-4)


@pytest.mark.parametrize("keys", [{"method": "tome", "r": 6}, {"method": "tome_threshold", "tau": 0.2, "r_max": 6}])
def test_no_place_is_written_twice(keys):
    """ONNX leaves open what a scatter does with a place that is named twice, and sources may well share a target."""
    model = rewrite(support.small_dense(), support.recipe(keys))[0]
    inner = [f"vitprune/block{block}/merge/rows/places" for block in range(2)]
    targets = [f"vitprune/block{block}/merge/targets" for block in range(2)]
    for name in (*inner, *targets):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None))
    found = support.session(model).run([*inner, *targets], {"image": support.images(4).numpy()})
    for places in found[:2]:
        assert len(np.unique(places.reshape(-1, 2), axis=0)) == places.shape[0] * places.shape[1]
    assert any(len(set(row)) < len(row) for rows in found[2:] for row in rows.tolist()), "no shared target to tell apart"


@pytest.mark.rtx
@pytest.mark.parametrize("variant", ["mean", "registers"])
def test_tensorrt_rtx_builds(variant):
    pytest.importorskip("tensorrt_rtx", reason="the tensorrt_rtx package is not installed")
    model = rewrite(support.small_dense(variant), support.recipe({"method": "tome", "r": [6, 0, 0, 30], "trace": True}))[0]
    assert support.rtx_problems(model) == []


def test_cost_of_published_setting():
    """DeiT-S at r = 13: 2.703 GMAC and 41 tokens at the end (methods.md §1)."""
    method, params = get("tome"), parameters(r=13)
    sites = method.sites(params, DEIT_S)
    kept = [site.limit for site in sites]
    assert kept[-1] + 1 == 41
    head = 384 * 1000  # the check values of methods.md count the classifier, `model_macs` does not
    macs = cost.model_macs(DEIT_S, method.block_tokens(sites, DEIT_S, kept)) + head
    assert round(macs / 1e9, 3) == 2.703
    assert round((cost.model_macs(DEIT_S, cost.dense_blocks(DEIT_S)) + head) / 1e9, 3) == 4.599


def test_schedules():
    assert schedule(13, -1, range(12)) == [26, 23, 21, 18, 16, 14, 11, 9, 7, 4, 2, 0]
    assert schedule(13, 1, range(12)) == [0, 2, 4, 7, 9, 11, 14, 16, 18, 21, 23, 26]
    assert schedule(8, 0, range(4)) == [8, 8, 8, 8]
    assert schedule(8, -1, [5]) == [8]
    assert counts(TINY, r=[1, 2, 3, 4]) == [35, 33, 30, 26]
    assert counts(TINY, r=30) == [18, 9, 5, 3]  # half of the patches at most
    assert counts(TINY, r=4, stages=[1, 3]) == [32, 28]


@settings(max_examples=30, deadline=None)
@given(r=st.integers(0, 60), inflect=st.floats(-1, 1), patches=st.integers(1, 80), depth=st.integers(1, 14))
def test_schedule_stays_possible(r, inflect, patches, depth):
    entering = patches
    for site in get("tome").sites(parameters(r=r, inflect=inflect), Geometry(depth, patches, 1, 32, 4, 128)):
        assert site.patches == entering
        assert 0 <= site.options.r <= entering // 2
        entering = site.limit
        assert entering >= 1


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"r": [1, 2], "inflect": -1.0}, 130),
        ({"r": [1, 2]}, 111),
        ({"r": -1}, 102),
        ({"inflect": 2.0}, 102),
        ({"stages": []}, 102),
        ({"stages": [3, 1]}, 102),
        ({"stages": [1, 7]}, 110),
        ({"ratio": 0.5}, 102),
    ],
)
def test_wrong_parameters(keys, code):
    with pytest.raises(RecipeError) as error:
        get("tome").sites(parameters(**keys), TINY)
    assert error.value.code == f"VP{code}"
    assert error.value.cause
    assert error.value.next_step
