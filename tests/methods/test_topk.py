import numpy as np
import pytest
import torch
from reduction_support import (
    TOLERANCE,
    deit_small,
    giga_macs,
    golden,
    golden_dense,
    golden_kept,
    golden_model,
    images,
    listed,
    pruned,
    recipe,
    run_graph,
    run_reference,
    small_dense,
    small_model,
)

from vitprune import methods
from vitprune.errors import RecipeError
from vitprune.methods._dropping import rule as topk
from vitprune.methods._dropping.reference import FixedRateReference
from vitprune.methods.base import Geometry
from vitprune.methods.cost import block_macs
from vitprune.vit.blocks import run_block
from vitprune.vit.tokens import TokenState


def sites(prune, geometry=None):
    rules = recipe({"method": "topk", **prune})
    return methods.get("topk").sites(rules.prune, geometry or deit_small())


@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
@pytest.mark.parametrize("prune", [{"method": "topk"}, {"method": "evit", "fuse": False}])
def test_golden_is_reproduced_by_reference_and_graph(prune, shapes):
    data, rules = golden("evit_keep70"), recipe(prune, shapes)
    expected = [golden_kept(stage) for stage in data["kept"]]
    logits, kept, judge = run_reference(golden_model("evit_keep70"), rules, data["x"])
    assert np.abs(logits - data["logits"]).max() < TOLERANCE
    assert [listed(stage) for stage in kept] == expected
    for margin, official in zip(judge.margin, data["margin"], strict=True):
        np.testing.assert_allclose(margin.numpy().min(axis=1), official, atol=1e-6)
    logits, kept = run_graph(pruned(golden_dense("evit_keep70"), rules), data["x"])
    assert np.abs(logits - data["logits"]).max() < TOLERANCE
    assert [listed(stage) for stage in kept] == expected


def test_select_takes_the_largest_and_breaks_ties_downwards():
    scores = torch.tensor([[0.1, 0.4, 0.2, 0.4, 0.4], [0.5, 0.1, 0.1, 0.1, 0.2]])
    chosen, margin = topk.select(scores, 2)
    assert chosen.tolist() == [[False, True, False, True, False], [True, False, False, False, True]]
    exact = scores.double()
    assert margin[0].tolist() == pytest.approx([(exact[0, 1] - exact[0, 0]).item(), 0, (exact[0, 1] - exact[0, 2]).item(), 0, 0])
    assert margin[1].tolist() == pytest.approx([0.4, 0.1, 0.1, 0.1, 0.1], abs=1e-7)
    everything, margin = topk.select(scores, 5)
    assert everything.all()
    assert torch.isinf(margin).all()


def test_score_is_the_mean_over_heads():
    rows = torch.tensor([[[0.4, 0.1], [0.2, 0.3]]])
    assert torch.allclose(topk.score(rows), torch.tensor([[0.3, 0.2]]))


def test_counts_round_up_per_stage_and_explicit_counts_win():
    assert [site.limit for site in sites({})] == [138, 97, 68]
    assert [site.limit for site in sites({"keep_rate": [0.5, 1.0, 0.9]})] == [98, 98, 89]
    assert [site.limit for site in sites({"keep": [137, 96, 67]})] == [137, 96, 67]


@pytest.mark.parametrize(
    ("prune", "code"),
    [
        ({"keep": [100, 120, 50]}, "VP120"),
        ({"keep": [10, 5]}, "VP111"),
        ({"keep_rate": [0.5, 0.5]}, "VP111"),
        ({"stages": [3, 12]}, "VP110"),
        ({"keep_rate": 1.2}, "VP102"),
        ({"keep_rate": 0}, "VP102"),
        ({"keep": 0}, "VP102"),
        ({"rate": 0.5}, "VP102"),
    ],
)
def test_bad_parameters_say_what_to_do(prune, code):
    with pytest.raises(RecipeError) as error:
        sites(prune)
    assert error.value.code == code
    assert error.value.cause
    assert error.value.next_step


def test_rows_of_kept_tokens_are_rows_of_the_dense_block():
    model = small_model("registers")
    rules = recipe({"method": "topk", "stages": [1], "keep": 5})
    method = methods.get("topk")
    geometry = Geometry(depth=6, patches=16, prefix=2, width=32, heads=4, mlp_hidden=128)
    rule = FixedRateReference(method, rules.prune, method.sites(rules.prune, geometry), False)
    torch.manual_seed(0)
    x = torch.randn(3, 18, 32)
    state = TokenState.full(3, 2, 16, x.device)
    with torch.no_grad():
        dense, reduced = run_block(model.blocks[1], x, None), rule.block(1, model.blocks[1], x, state)
    assert reduced.shape == (3, 7, 32)
    for image in range(3):
        rows = [0, 1, *(state.kept[0][image] + 2).tolist()]
        torch.testing.assert_close(reduced[image], dense[image, rows], atol=1e-5, rtol=0)


def test_cost_counts_queries_of_kept_tokens_only():
    blocks = methods.get("topk").block_tokens(sites({}), deit_small(), [138, 97, 68])
    assert [b.entering for b in blocks] == [197] * 4 + [139] * 3 + [98] * 3 + [69] * 2
    assert [b.queries for b in blocks] == [b.mlp for b in blocks] == [197] * 3 + [139] * 3 + [98] * 3 + [69] * 3
    n, k, d = 197, 139, 384
    assert block_macs(blocks[3], d, 4 * d) == 2 * n * d * d + 2 * k * d * d + 2 * n * k * d + 8 * k * d * d
    assert giga_macs({"method": "topk"}, deit_small()) == pytest.approx(2.9435, abs=1e-4)


def test_fixed_batch_of_one_gives_the_same():
    rules = recipe({"method": "topk", "stages": [1, 3]}, batch="1")
    x = images(1)
    logits, kept = run_graph(pruned(small_dense(), rules), x)
    expected, rows, _ = run_reference(small_model(), rules, x)
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)
    assert all(np.array_equal(a, b) for a, b in zip(kept, rows, strict=True))
