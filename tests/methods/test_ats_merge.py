"""ATS with merged drops: equations, both implementations in both shape modes, relation to ATS, refusals."""

import merging_support as support
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merging_support import Graph, Judge

from vitprune.errors import ExportError, RecipeError
from vitprune.graph.surgery import rewrite
from vitprune.methods import cost, get
from vitprune.methods.ats_merge import rule as ats_merge
from vitprune.methods.base import Geometry

TINY = Geometry(4, 36, 1, 32, 4, 128)


def prune(**keys):
    return {"method": "ats_merge", "stages": [0, 1, 2, 3], "num_samples": [40, 24, None, 12], "trace": True, **keys}


def test_oracle_of_the_assignment():
    metric = torch.tensor([[[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]]])
    chosen = torch.tensor([[True, False, True, False, False]])
    into, ahead = ats_merge.nearest_kept(metric, chosen)
    assert into.tolist() == [[0, 0, 2, 2, 2]]
    assert ahead[0].tolist() == pytest.approx([1.0, 0.2, 1.0, 0.2, 1.0])
    into, ahead = ats_merge.nearest_kept(metric, torch.tensor([[False, True, False, False, False]]))
    assert into.tolist() == [[1] * 5]
    assert ahead.isinf().all()
    tie, _ = ats_merge.nearest_kept(torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[True, True, False]]))
    assert tie[0, 2] == 0  # ties to the lower slot


@pytest.mark.parametrize(("variant", "shapes"), [pair for pair in support.BOTH_SHAPES if pair[0] != "mean"])
def test_families(variant, shapes):
    judge, graph = support.both(variant, prune(), shapes)
    x = support.images(4)
    expected = judge(x)
    support.assert_same(expected, graph(x))
    support.assert_partition(expected[1], expected[2])
    for rows in expected[1]:
        assert all(list(row[row >= 0]) == sorted(row[row >= 0]) for row in rows)


@pytest.mark.parametrize("side", ["reference", "graph"])
def test_first_site_decides_like_ats(side):
    """Same decisions as ATS where the input is the same, official grid and paper's; other logits, since nothing is lost."""
    x = support.images(3)
    for mode in ("paper", "official"):
        found = {}
        for method in ("ats", "ats_merge"):
            rules = support.recipe({"method": method, "mode": mode, "stages": [1], "num_samples": 20})
            model = support.small()
            if side == "graph":
                found[method] = Graph(support.small_dense(), rules)(x)
            else:
                judge = Judge(model, rules) if method == "ats_merge" else support.reference(model, rules)
                with torch.no_grad():
                    found[method] = judge(x) if method == "ats_merge" else (judge(x).numpy(), [k.numpy() for k in judge.kept])
        np.testing.assert_array_equal(found["ats"][1][0], found["ats_merge"][1][0])
        assert np.abs(found["ats"][0] - found["ats_merge"][0]).max() > 1e-3


def test_stages_without_sampling_are_dense():
    judge, graph = support.both("scaled", prune(num_samples=None))
    x = support.images(2)
    for run in (judge, graph):
        logits, kept, groups = run(x)
        np.testing.assert_allclose(logits, support.dense_logits("scaled", x), atol=1e-5, rtol=0)
        assert all(np.array_equal(rows, np.tile(np.arange(36), (2, 1))) for rows in (*kept, *groups))


def test_merging_equal_patches_is_dense():
    """All patches are sampled and the capacity cuts one: its twin is kept, so that merging it loses nothing."""
    model, x = support.twins()
    prune = {"method": "ats_merge", "stages": [0], "num_samples": 65536, "capacity": 35, "trace": True}
    with torch.no_grad():
        dense = model(x).numpy()
    for shapes in ("dynamic", "padded"):
        rules = support.recipe(prune, shapes)
        for run in (Judge(model, rules), Graph(support.twins_dense(), rules)):
            logits, kept, groups = run(x)
            assert kept[0].shape == (3, 35)
            for group in groups[0]:
                moved = np.flatnonzero(group != np.arange(36))
                assert len(moved) == 1
                assert group[moved[0]] // 2 == moved[0] // 2
            np.testing.assert_allclose(logits, dense, atol=1e-5, rtol=0)


@settings(max_examples=3, deadline=None)
@given(
    samples=st.lists(st.one_of(st.none(), st.integers(1, 50)), min_size=4, max_size=4),
    mode=st.sampled_from(["paper", "official"]),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
    proportional=st.booleans(),
)
def test_graph_equals_reference(samples, mode, batch, seed, proportional):
    x = support.images(batch, seed)
    found = []
    for shapes in ("dynamic", "padded"):
        judge, graph = support.both("plain", prune(num_samples=samples, mode=mode, prop_attn=proportional), shapes)
        expected = support.assert_batch_invariant(judge, x)
        support.assert_batch_invariant(graph, x)
        if min(float(margin.min()) for margin in judge.model.margin) > 1e-5:
            support.assert_same(expected, graph(x))
        support.assert_partition(expected[1], expected[2])
        found.append(expected[0])
    np.testing.assert_allclose(found[0], found[1], atol=1e-5, rtol=0)


def test_capacity_merges_what_it_cuts():
    for shapes in ("dynamic", "padded"):
        judge, graph = support.both("plain", prune(num_samples=30, capacity=[16, 12, 12, 8]), shapes)
        x = support.images(3)
        expected = judge(x)
        support.assert_same(expected, graph(x))
        support.assert_partition(expected[1], expected[2])
        assert int(judge.model.overflow[0].sum()) > 0
        size, rows = judge.model.extra["size"], judge.model.kept[-1]
        assert torch.where(rows >= 0, size, torch.zeros_like(size)).sum(dim=1).tolist() == [36.0] * 3


def test_content_of_pads_is_irrelevant():
    judge, _ = support.both("plain", prune(), "padded")
    x = support.images(4)
    expected = judge(x)
    hidden = torch.as_tensor(expected[1][1] < 0)
    assert hidden.any()

    def noise(module, inputs):
        rows = inputs[0].clone()
        rows[:, 1:][hidden] = 1e3 * torch.randn_like(rows[:, 1:][hidden])
        return (rows,)

    hook = support.small().blocks[2].norm1.register_forward_pre_hook(noise)
    found = judge(x)
    hook.remove()
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5, rtol=0)


def test_single_image_graph():
    rules = support.recipe(prune(), batch="1")
    model = rewrite(support.small_dense(), rules)[0]
    assert not any("/bias/pad" in node.name for node in model.graph.node)
    x = support.images(3)
    whole, run = Judge(support.small(), rules)(x), support.session(model)
    for image in range(3):
        logits = run.run(["logits"], {"image": x[image : image + 1].numpy()})[0]
        np.testing.assert_allclose(logits, whole[0][image : image + 1], atol=1e-4)


@pytest.mark.rtx
@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
def test_tensorrt_rtx_builds(shapes):
    pytest.importorskip("tensorrt_rtx", reason="the tensorrt_rtx package is not installed")
    assert (
        support.rtx_problems(
            rewrite(support.small_dense(), support.recipe(prune(stages=[0, 2], num_samples=[30, 12]), shapes))[0]
        )
        == []
    )


def test_cost_has_no_query_pruning():
    """Attention is whole at a site; ATS itself would compute 25 queries there."""
    sites = get("ats_merge").sites(support.recipe({"method": "ats_merge", "stages": [1, 3], "num_samples": 24}).prune, TINY)
    blocks = get("ats_merge").block_tokens(sites, TINY, [24, 12])
    assert [(block.entering, block.queries, block.mlp) for block in blocks] == [
        (37, 37, 37), (37, 37, 25), (25, 25, 25), (25, 25, 13),
    ]  # fmt: skip
    lost = cost.model_macs(TINY, get("ats").block_tokens(sites, TINY, [24, 12]))
    assert lost < cost.model_macs(TINY, blocks) < cost.model_macs(TINY, cost.dense_blocks(TINY))


@pytest.mark.parametrize(("keys", "code"), [({"dropped": "lose"}, 102), ({"num_samples": [3]}, 111), ({"stages": [9]}, 110)])
def test_wrong_parameters(keys, code):
    with pytest.raises(RecipeError) as error:
        get("ats_merge").sites(support.recipe({"method": "ats_merge", "stages": [0, 1], **keys}).prune, TINY)
    assert error.value.code == f"VP{code}"


def test_needs_a_cls_token():
    rules = support.recipe(prune())
    with pytest.raises(ExportError) as error:
        Judge(support.small("mean"), rules)
    assert error.value.code == "VP312"
    with pytest.raises(ExportError) as error:
        rewrite(support.small_dense("mean"), rules)
    assert error.value.code == "VP312"
