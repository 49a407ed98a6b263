"""Threshold merging: equations, both implementations in both shape modes, capacity, refusals."""

import merging_support as support
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merging_support import Graph, Judge

from vitprune.errors import RecipeError
from vitprune.graph.surgery import rewrite
from vitprune.methods import cost, get
from vitprune.methods.base import Geometry
from vitprune.methods.tome_threshold import rule as tome_threshold

TINY = Geometry(4, 36, 1, 32, 4, 128)
SITES = {"tau": [0.95, 0.9, 0.7, 0.5], "r_max": [6, 6, 5, 4]}


def parameters(**keys):
    return support.recipe({"method": "tome_threshold", **keys}).prune


def prune(**keys):
    return {"method": "tome_threshold", "trace": True, **SITES, **keys}


def test_oracle_of_one_site():
    """Similarities .9 .8 .5 of three members of A: tau and r_max decide, force comes before tau."""
    never = float("-inf")
    best = torch.tensor([[0.8, never, 0.9, never, 0.5, never]])
    gap = torch.full_like(best, 0.3)
    none, one = torch.tensor([[0]]), torch.tensor([[1]])

    def joined(tau, r_max, forced=none):
        return tome_threshold.select(best, gap, tau, r_max, forced)[0][0].nonzero()[:, 0].tolist()

    assert joined(0.4, 3) == [0, 2, 4]
    assert joined(0.6, 3) == [0, 2]
    assert joined(0.8, 3) == [2]  # strictly more than tau
    assert joined(0.4, 1) == [2]
    assert joined(2.0, 3) == []
    assert joined(2.0, 3, one) == [2]
    assert joined(0.6, 3, one) == [0, 2]


def test_margins_of_one_site():
    never = float("-inf")
    best, gap = torch.tensor([[0.8, never, 0.9, never, 0.5, never]]), torch.tensor([[0.3, 9.0, 0.02, 9.0, 0.3, 9.0]])

    def margins(tau, r_max, forced=0):
        return tome_threshold.select(best, gap, tau, r_max, torch.tensor([[forced]]))[1][0, [0, 2, 4]].tolist()

    assert margins(0.6, 3) == pytest.approx([0.2, 0.02, 0.1], abs=1e-6)  # to tau; to a second partner; to tau
    assert margins(0.4, 2) == pytest.approx([0.3, 0.02, 0.3], abs=1e-6)  # the cut at two pairs, or a second partner
    assert margins(2.0, 3, 2) == pytest.approx([0.3, 0.02, 0.3], abs=1e-6)  # the cut at two forced pairs


def test_margins_tell_which_thresholds_flip():
    """Moving tau by less than the smallest margin of a site changes nothing there, by more than a patch's margin moves it."""
    x = support.images(3)
    first = Judge(support.small(), support.recipe(prune(stages=[1], tau=0.9, r_max=30)))
    first(x)
    smallest = float(first.model.margin[0].min())
    assert smallest > 1e-6
    for shift in (-0.5 * smallest, 0.5 * smallest):
        moved = Judge(support.small(), support.recipe(prune(stages=[1], tau=0.9 + shift, r_max=30)))
        assert np.array_equal(moved(x)[1][0], first.model.kept[0].numpy())


@pytest.mark.parametrize(("variant", "shapes"), support.BOTH_SHAPES)
def test_families(variant, shapes):
    judge, graph = support.both(variant, prune(), shapes)
    x = support.images(4)
    expected = judge(x)
    support.assert_same(expected, graph(x))
    support.assert_partition(expected[1], expected[2])
    for rows in expected[1]:
        assert all(list(row[row >= 0]) == sorted(row[row >= 0]) for row in rows)
    assert len({int((row >= 0).sum()) for row in expected[1][-1]}) > 1  # counts follow the image


@pytest.mark.parametrize(("variant", "shapes"), support.BOTH_SHAPES)
def test_threshold_above_one_is_dense(variant, shapes):
    """All inserted nodes run and merge nothing: sizes, log(size), one-hot products, packing."""
    judge, graph = support.both(variant, {"method": "tome_threshold", "tau": 2.0, "r_max": 8}, shapes)
    x = support.images(2)
    used = [node.op_type for node in graph.model.graph.node if node.name.startswith("vitprune")]
    assert used.count("TokenSample") == 4
    assert used.count("Log") >= 3  # nothing attends after the last site
    for run in (judge, graph):
        logits, kept, _ = run(x)
        np.testing.assert_allclose(logits, support.dense_logits(variant, x), atol=1e-5, rtol=0)
        assert all(np.array_equal(rows, np.tile(np.arange(36), (2, 1))) for rows in kept)


def test_merging_equal_patches_is_dense():
    """Only the pairs of equal neighbours exceed tau: merging them loses nothing, though r_max would allow more."""
    model, x = support.twins()
    with torch.no_grad():
        dense = model(x).numpy()
    for shapes in ("dynamic", "padded"):
        rules = support.recipe({"method": "tome_threshold", "stages": [0], "tau": 0.99999, "r_max": 18}, shapes)
        for run in (Judge(model, rules), Graph(support.twins_dense(), rules)):
            logits, kept, _ = run(x)
            assert all(set(row[row >= 0]) == set(range(0, 36, 2)) for row in kept[0])
            np.testing.assert_allclose(logits, dense, atol=1e-5, rtol=0)


def test_without_threshold_one_site_is_tome():
    """At tau = -1 the r_max best pairs merge as in ToMe; the order of rows differs, the logits do not."""
    x = support.images(3)
    one = Graph(support.small_dense(), support.recipe(prune(stages=[1], tau=-1, r_max=7)))(x)
    other = Graph(support.small_dense(), support.recipe({"method": "tome", "stages": [1], "r": 7, "trace": True}))(x)
    np.testing.assert_allclose(one[0], other[0], atol=1e-5, rtol=0)
    np.testing.assert_array_equal(one[1][0], np.sort(other[1][0], axis=1))
    np.testing.assert_array_equal(one[2][0], other[2][0])


@settings(max_examples=3, deadline=None)
@given(
    tau=st.floats(-1, 1),
    r_max=st.lists(st.integers(0, 12), min_size=4, max_size=4),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_graph_equals_reference(tau, r_max, batch, seed):
    x = support.images(batch, seed)
    found = []
    for shapes in ("dynamic", "padded"):
        judge, graph = support.both("plain", prune(tau=tau, r_max=r_max), shapes)
        expected = support.assert_batch_invariant(judge, x)
        support.assert_batch_invariant(graph, x)
        if min(float(margin.min()) for margin in judge.model.margin) > 1e-5:
            support.assert_same(expected, graph(x))
        support.assert_partition(expected[1], expected[2])
        found.append(expected[0])
    np.testing.assert_allclose(found[0], found[1], atol=1e-5, rtol=0)


def test_content_of_pads_is_irrelevant():
    """An image keeps its logits to the last decision whether its pads copy one row or hold noise."""
    judge, _ = support.both("plain", prune(), "padded")
    x = support.images(4)
    expected = judge(x)
    after = {}

    def noise(module, inputs):
        (rows,) = inputs
        hidden = ~torch.as_tensor(after["valid"])
        rows = rows.clone()
        rows[:, 1:][hidden] = 1e3 * torch.randn_like(rows[:, 1:][hidden])
        return (rows,)

    after["valid"] = expected[1][1] >= 0
    assert not after["valid"].all()
    hook = support.small().blocks[2].norm1.register_forward_pre_hook(noise)
    found = judge(x)
    hook.remove()
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5, rtol=0)


def test_single_image_graphs_carry_no_masks():
    rules = support.recipe(prune(), batch="1")
    model = rewrite(support.small_dense(), rules)[0]
    assert not any("/bias/pad" in node.name for node in model.graph.node)
    x = support.images(3)
    whole, run = Judge(support.small(), rules)(x), support.session(model)
    for image in range(3):
        logits = run.run(["logits"], {"image": x[image : image + 1].numpy()})[0]
        np.testing.assert_allclose(logits, whole[0][image : image + 1], atol=1e-4)


@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
def test_capacity_merges_the_most_similar_pairs_instead_of_losing_tokens(shapes):
    judge, graph = support.both("plain", prune(tau=1.0, r_max=6, capacity=[32, 28, None, 24]), shapes)
    x = support.images(3)
    expected = judge(x)
    support.assert_same(expected, graph(x))
    support.assert_partition(expected[1], expected[2])
    assert [rows.shape[1] for rows in expected[1]] == [32, 28, 28, 24]
    assert [overflow.tolist() for overflow in judge.model.overflow] == [[4] * 3, [4] * 3, [0] * 3, [4] * 3]


def test_every_patch_is_counted_once():
    judge, _ = support.both("registers", prune())
    judge(support.images(4))
    size, rows = judge.model.extra["size"], judge.model.kept[-1]
    assert torch.where(rows >= 0, size, torch.zeros_like(size)).sum(dim=1).tolist() == [36.0] * 4


@pytest.mark.rtx
@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
def test_tensorrt_rtx_builds(shapes):
    pytest.importorskip("tensorrt_rtx", reason="the tensorrt_rtx package is not installed")
    rules = support.recipe(prune(stages=[0, 2], tau=0.9, r_max=6, capacity=[34, None]), shapes)
    assert support.rtx_problems(rewrite(support.small_dense(), rules)[0]) == []


def test_cost_follows_the_counts():
    method = get("tome_threshold")
    sites = method.sites(parameters(tau=0.9, r_max=6), TINY)
    blocks = method.block_tokens(sites, TINY, [33.5, 30, 30, 28])
    assert [(block.entering, block.queries, block.mlp) for block in blocks] == [
        (37, 37, 34.5), (34.5, 34.5, 31), (31, 31, 31), (31, 31, 29),
    ]  # fmt: skip
    assert cost.model_macs(TINY, blocks) < cost.model_macs(TINY, cost.dense_blocks(TINY))


def test_bounds():
    sites = get("tome_threshold").sites(parameters(tau=0.9, r_max=30), TINY)
    assert [site.options.r_max for site in sites] == [18, 9, 4, 2]  # half of the fewest that can be left: 36, 18, 9, 5
    assert [site.limit for site in sites] == [36] * 4
    sites = get("tome_threshold").sites(parameters(tau=0.9, r_max=6, capacity=[30, 27, None, 27]), TINY)
    assert [site.limit for site in sites] == [30, 27, 27, 27]


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"capacity": 20}, 131),
        ({"tau": [0.9, 0.8]}, 111),
        ({"tau": 3}, 102),
        ({"tau": -1.5}, 102),
        ({"r_max": [1]}, 111),
        ({"stages": [4]}, 110),
        ({"r": 4}, 102),
    ],
)
def test_wrong_parameters(keys, code):
    with pytest.raises(RecipeError) as error:
        get("tome_threshold").sites(parameters(**keys), TINY)
    assert error.value.code == f"VP{code}"
    assert error.value.cause
    assert error.value.next_step
