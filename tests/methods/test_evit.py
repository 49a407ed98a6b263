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
    listed,
    pruned,
    recipe,
    run_graph,
    run_reference,
    small_model,
)

from vitprune import methods
from vitprune.errors import RecipeError
from vitprune.methods._dropping.reference import FixedRateReference
from vitprune.methods.base import Geometry
from vitprune.methods.evit import rule as evit
from vitprune.vit.blocks import attention, attention_output, feed_forward, merge_heads, project
from vitprune.vit.tokens import TokenState


@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
def test_golden_is_reproduced_by_reference_and_graph(shapes):
    data, rules = golden("evit_keep70_fuse"), recipe({"method": "evit"}, shapes)
    expected = [golden_kept(stage) for stage in data["kept"]]
    logits, kept, judge = run_reference(golden_model("evit_keep70_fuse"), rules, data["x"])
    assert np.abs(logits - data["logits"]).max() < TOLERANCE
    assert [listed(stage) for stage in kept] == expected
    for margin, official in zip(judge.margin, data["margin"], strict=True):
        assert (margin.numpy().min(axis=1) >= official - 1e-6).all()  # the official one also looks at fused tokens
    logits, kept = run_graph(pruned(golden_dense("evit_keep70_fuse"), rules), data["x"])
    assert np.abs(logits - data["logits"]).max() < TOLERANCE
    assert [listed(stage) for stage in kept] == expected


def test_golden_covers_fused_tokens_that_are_scored_again():
    kept = golden("evit_keep70_fuse")["kept"]
    assert (kept[1:] < -1).any(axis=(1, 2)).all()
    assert (kept[2] >= 0).sum(axis=1).tolist() != (kept[2] != -1).sum(axis=1).tolist()


def test_fused_token_is_the_unnormalised_weighted_sum():
    rows = torch.tensor([[[1.0, 0.0], [2.0, 4.0], [10.0, 20.0]]])
    token = evit.fuse(rows, torch.tensor([[0.5, 0.1, 0.2]]), torch.tensor([[False, True, True]]))
    torch.testing.assert_close(token, torch.tensor([[[2.2, 4.4]]]))


def test_rows_after_the_site_come_from_the_attention_residual():
    """Kept rows are rows of the dense block; the last row is the MLP of the weighted sum of dropped attention rows."""
    block = small_model("registers").blocks[1]
    rules, method = recipe({"method": "evit", "stages": [1], "keep": 5}), methods.get("evit")
    geometry = Geometry(depth=6, patches=16, prefix=2, width=32, heads=4, mlp_hidden=128)
    rule = FixedRateReference(method, rules.prune, method.sites(rules.prune, geometry), False)
    torch.manual_seed(1)
    x = torch.randn(2, 18, 32)
    state = TokenState.full(2, 2, 16, x.device)
    with torch.no_grad():
        reduced = rule.block(1, block, x, state)
        query, key, value = project(block.attn, block.norm1(x))
        weights = attention(query, key, None)
        attended = x + attention_output(block, merge_heads(weights @ value))
        dense = feed_forward(block, attended)
        score = weights[:, :, 0, 2:].mean(1)
        for image in range(2):
            kept = state.kept[0][image].tolist()
            assert kept == sorted(score[image].topk(5).indices.tolist())
            torch.testing.assert_close(reduced[image, :7], dense[image, [0, 1, *(j + 2 for j in kept)]], atol=1e-5, rtol=0)
            gone = [j for j in range(16) if j not in kept]
            fused = sum(score[image, j] * attended[image, j + 2] for j in gone)
            torch.testing.assert_close(reduced[image, 7:], feed_forward(block, fused[None, None])[0], atol=1e-4, rtol=0)
    assert reduced.shape[1] == 2 + 5 + 1
    assert state.patch.tolist() == [[*state.kept[0][image].tolist(), 16] for image in range(2)]


def test_counts_include_fused_tokens():
    sites = methods.get("evit").sites(recipe({"method": "evit"}).prune, deit_small())
    assert [site.options.slots for site in sites] == [196, 139, 99]
    assert [site.options.keep for site in sites] == [138, 98, 70]
    blocks = methods.get("evit").block_tokens(sites, deit_small(), [138, 97, 69])
    assert [b.entering for b in blocks] == [197] * 4 + [140] * 3 + [100] * 3 + [72] * 2
    assert [b.queries for b in blocks] == [b.entering for b in blocks]
    assert [b.mlp for b in blocks] == [197] * 3 + [140] * 3 + [100] * 3 + [72] * 3


@pytest.mark.parametrize(("rate", "published"), [(0.9, 4.0), (0.7, 3.0), (0.5, 2.3)])
def test_cost_matches_the_published_figures(rate, published):
    assert giga_macs({"method": "evit", "keep_rate": rate}, deit_small()) == pytest.approx(published, abs=0.05)


def test_a_stage_that_drops_nothing_makes_no_fused_token():
    sites = methods.get("evit").sites(recipe({"method": "evit", "keep_rate": [1.0, 0.5, 1.0]}).prune, deit_small())
    assert [site.options.combine for site in sites] == [None, "weighted", None]
    assert [site.options.keep for site in sites] == [196, 98, 99]


def test_counts_must_not_exceed_what_enters():
    rules = recipe({"method": "evit", "keep": [50, 52, 10]})
    with pytest.raises(RecipeError) as error:
        methods.get("evit").sites(rules.prune, deit_small())
    assert error.value.code == "VP120"
    assert "52 of 51" in error.value.message


def test_following_a_list_follows_its_fused_token_too():
    """Lists name patches alone: where a graph keeps the fused token and the reference would not, or the other way round, -1 says so."""
    state = TokenState.full(2, 1, 6, torch.device("cpu"))
    state.keep(torch.tensor([[True, True, True, False, False, False]] * 2))
    state.append()
    state.decisions = [torch.tensor([[0, 1, 2], [0, 1, -1]])]
    chosen = torch.tensor([[True, True, False, True], [True, False, True, False]])
    assert state.follow(chosen).tolist() == [[True, True, True, False], [True, True, False, True]]
    state.append()
    state.decisions = [torch.tensor([[0, 1, -1], [0, -1, -1]])]
    chosen = torch.tensor([[True, False, False, False, True], [True, True, True, False, False]])
    assert state.follow(chosen).tolist() == [[True, True, False, False, True], [True, False, False, True, True]]
