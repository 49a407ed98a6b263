import numpy as np
import pytest
import torch
from reduction_support import (
    TOLERANCE,
    deit_small,
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
from vitprune.methods._dropping.reference import FixedRateReference
from vitprune.methods.base import Geometry
from vitprune.methods.pomt import rule as pomt
from vitprune.vit.blocks import attention, attention_output, feed_forward, merge_heads, project
from vitprune.vit.tokens import TokenState


def loops(attention_rows, value, prefix):
    """The two terms of methods.md §7.4 written with loops over one image: attention [H,N,N], value [H,N,d]."""
    heads, tokens, channels = value.shape
    column = [sum(max(attention_rows[h, i, j] for h in range(heads)) for i in range(tokens)) for j in range(tokens)][prefix:]
    content = [sum(max(value[h, j, c] for h in range(heads)) for c in range(channels)) for j in range(tokens)][prefix:]
    power = [np.exp(v - max(content)) for v in content]
    return [c / max(column) + p / sum(power) for c, p in zip(column, power, strict=True)]


def test_score_follows_the_equations():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 3, 7, 7, generator=generator).softmax(-1)
    value = torch.randn(2, 3, 7, 4, generator=generator)
    score = pomt.score(weights, value, 2)
    assert score.shape == (2, 5)
    for image in range(2):
        expected = loops(weights[image].double().numpy(), value[image].double().numpy(), 2)
        np.testing.assert_allclose(score[image].numpy(), expected, atol=1e-5)


def test_score_of_an_image_does_not_see_its_batch_mates():
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(3, 2, 6, 6, generator=generator).mul(4).softmax(-1)
    value = torch.randn(3, 2, 6, 4, generator=generator)
    together = pomt.score(weights, value, 1)
    alone = torch.cat([pomt.score(weights[i : i + 1], value[i : i + 1], 1) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=0, rtol=0)


def test_one_more_token_leaves_and_the_mean_comes_in():
    block = small_model("registers").blocks[2]
    rules, method = recipe({"method": "pomt", "stages": [2], "remove": 6}), methods.get("pomt")
    geometry = Geometry(depth=6, patches=16, prefix=2, width=32, heads=4, mlp_hidden=128)
    rule = FixedRateReference(method, rules.prune, method.sites(rules.prune, geometry), False)
    torch.manual_seed(2)
    x = torch.randn(2, 18, 32)
    state = TokenState.full(2, 2, 16, x.device)
    with torch.no_grad():
        reduced = rule.block(2, block, x, state)
        query, key, value = project(block.attn, block.norm1(x))
        weights = attention(query, key, None)
        attended = x + attention_output(block, merge_heads(weights @ value))
        assert reduced.shape[1] == 18 - 6
        for image in range(2):
            score = loops(weights[image].double().numpy(), value[image].double().numpy(), 2)
            kept = sorted(np.argsort(score)[-9:].tolist())
            assert state.kept[0][image].tolist() == kept
            gone = [j + 2 for j in range(16) if j not in kept]
            mean = feed_forward(block, attended[image, gone].mean(0)[None, None])
            torch.testing.assert_close(reduced[image, -1:], mean[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("kind", "shapes"), [("registers", "dynamic"), ("mean", "dynamic"), ("cls_mean", "padded")])
def test_graph_agrees_with_the_reference(kind, shapes):
    rules = recipe({"method": "pomt", "stages": [2], "remove": 6}, shapes)
    x = images(4)
    logits, kept, _ = run_reference(small_model(kind), rules, x)
    model = pruned(small_dense(kind), rules, kind != "mean")
    found, rows = run_graph(model, x)
    np.testing.assert_allclose(found, logits, atol=TOLERANCE, rtol=0)
    assert [listed(stage) for stage in rows] == [listed(stage) for stage in kept]
    assert rows[0].shape == (4, 16 - 6 - 1)


def test_cost_of_the_published_example():
    method, rules = methods.get("pomt"), recipe({"method": "pomt", "remove": 56})
    blocks = method.block_tokens(method.sites(rules.prune, deit_small()), deit_small(), [139])
    assert [b.entering for b in blocks] == [197] * 4 + [141] * 8
    assert [b.mlp for b in blocks] == [197] * 3 + [141] * 9
    assert [b.queries for b in blocks] == [b.entering for b in blocks]


@pytest.mark.parametrize(
    ("prune", "code"),
    [({"remove": 195}, "VP123"), ({"stages": [3, 6]}, "VP102"), ({"stages": [12]}, "VP110"), ({"remove": -1}, "VP102")],
)
def test_bad_parameters_say_what_to_do(prune, code):
    with pytest.raises(RecipeError) as error:
        methods.get("pomt").sites(recipe({"method": "pomt", **prune}).prune, deit_small())
    assert error.value.code == code
    assert error.value.cause
    assert error.value.next_step
