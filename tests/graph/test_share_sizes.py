"""Margins of scores that are attention shares: what roundings of a share are relative to, against shares that were really moved."""

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper
from test_precision import dense, model, pixels, recipe, samples

from vitprune.errors import ExportError
from vitprune.exporting import parity
from vitprune.graph import surgery
from vitprune.methods._dropping import rule, sizes
from vitprune.methods.asvit import rule as asvit
from vitprune.validation.margins import distances, sizes_of
from vitprune.vit.pruned import PrunedViT

ROUNDING = 1e-5
SCORED = ("topk", "evit", "asvit")


def attention(seed, rows=1):
    """Queries [1,3,M,16] and keys [1,3,21,16] of logits up to about ten."""
    made = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(1, 3, count, 16, generator=made, dtype=torch.float64) for count in (rows, 21))
    return query, 2 * key + torch.randn(1, 3, 1, 16, generator=made, dtype=torch.float64)


def shares(query, key):
    """[1,H*M,N]."""
    return (query @ key.transpose(-2, -1)).softmax(dim=-1).flatten(1, 2)


def moved(query, key, seed):
    """Both with errors of one rounding of their length, in any direction."""
    made = torch.Generator().manual_seed(seed)

    def by(x):
        direction = torch.randn(x.shape, generator=made, dtype=torch.float64)
        return x + ROUNDING * x.norm(dim=-1, keepdim=True) * direction / direction.norm(dim=-1, keepdim=True)

    return by(query), by(key)


def worst(query, key, errors_of, change_of, tries=200):
    """The largest change of a score over what is allowed for the two roundings of its logits, and the median."""
    before, allowed = shares(query, key), errors_of(shares(query, key)) * 2 * ROUNDING
    found = torch.stack(
        [(change_of(shares(*moved(query, key, seed))) - change_of(before)).abs() / allowed for seed in range(tries)]
    )
    return float(found.nan_to_num(0.0, 0.0, 0.0).max())


@pytest.mark.parametrize("rows", [1, 5])
def test_pairs_move_by_no_more_than_is_allowed_and_nearly_as_much(rows):
    query, key = attention(1, rows)
    logits = sizes.logit_sizes(query, key).flatten(1, 2).double()

    def gaps(rows_of):
        score = rows_of.mean(dim=1)[:, 1:]
        return score[:, :, None] - score[:, None, :]

    seen = worst(query, key, lambda rows_of: sizes.pair_errors(rows_of, logits, 1), gaps)
    assert 0.1 < seen < 1, "allowed for what happens, and not for ten times as much"


def test_shares_move_by_no_more_than_is_allowed_and_nearly_as_much():
    query, key = attention(2)
    logits = sizes.logit_sizes(query, key).flatten(1, 2).double()
    seen = worst(query, key, lambda rows: sizes.share_errors(rows, logits), lambda rows: rows)
    assert 0.1 < seen < 1
    context = torch.rand(1, 3, 21, 4, dtype=torch.float64).float()
    errors = sizes.share_errors(shares(query, key), logits).float()
    plain, weighted = (asvit.score_errors(errors, shares(query, key).float(), context, by) for by in (False, True))
    torch.testing.assert_close(plain, errors.mean(dim=1))
    assert bool((weighted > asvit.score(errors, context, True)).all()), "a head's weight is rounded too"


def test_the_size_of_the_logit_itself_would_not_do():
    """Planted: roundings taken relative to |l|, which is small where a logit is a small sum of large terms."""
    query, key = attention(3)
    key = key - (query * key).sum(dim=-1, keepdim=True) * query / query.square().sum(dim=-1, keepdim=True) * (1 - 1e-3)
    own = (query @ key.transpose(-2, -1)).abs().flatten(1, 2)
    right = sizes.logit_sizes(query, key).flatten(1, 2).double()
    assert worst(query, key, lambda rows: sizes.share_errors(rows, own), lambda rows: rows) > 10
    assert worst(query, key, lambda rows: sizes.share_errors(rows, right), lambda rows: rows) < 1


def test_a_cut_counts_the_pair_that_is_the_fewest_roundings_apart():
    score = torch.tensor([[0.5, 0.3, 0.2, 0.1]])
    chosen, margin = rule.select(score, 2)
    errors = torch.full((1, 4, 4), 0.1, dtype=torch.float64)
    assert sizes.cut_sizes(score, chosen, margin, errors)[0].tolist() == pytest.approx([0.1] * 4)
    errors[0, 1, 3] = errors[0, 3, 1] = 0.8  # 0.2 apart, 0.25 roundings of theirs; 0.1 apart are a whole one of the others
    size = sizes.cut_sizes(score, chosen, margin, errors)[0]
    assert (margin[0] / size).tolist() == pytest.approx([3.0, 0.25, 1.0, 0.25])
    assert sizes.cut_sizes(score, *rule.select(score, 4), errors)[0].tolist() == [1.0] * 4
    even = torch.full((1, 4), 0.25)
    assert sizes.cut_sizes(even, *rule.select(even, 2), errors)[0].tolist() == [1.0] * 4


@pytest.mark.parametrize("method", SCORED)
def test_sizes_are_those_of_a_type_and_of_margins_that_follow_from_it(method):
    images = torch.from_numpy(pixels(4))
    tests = {mode: PrunedViT(model(), recipe(method, mode)).eval() for mode in ("fp32", "fp16")}
    tests["set"] = PrunedViT(model(), recipe(method, flip_margin=1e-3)).eval()
    with torch.inference_mode():
        for oracle in tests.values():
            oracle(images)
    for size, plain, given in zip(tests["fp16"].margin_sizes, tests["fp32"].margin_sizes, tests["set"].margin_sizes, strict=True):
        assert bool((plain == 1).all())
        assert bool((given == 1).all())
        assert bool((size != 1).any())
        assert bool((size > 0).all())
        assert bool(torch.isfinite(size).all())
    arrays = parity.reference_arrays(tests["fp16"], samples(4), np.zeros((4, 1)), None)
    first = tests["fp16"].sites[0].block
    np.testing.assert_allclose(distances(arrays, first), arrays[f"margin_{first}"] / arrays[f"size_{first}"])
    assert distances({"margin_3": arrays[f"margin_{first}"]}, 3) is arrays[f"margin_{first}"]
    assert distances({}, 3) is None
    assert sizes_of(2, [np.ones((2, 3)), np.ones((1, 3))]) == {}


def shifted(pruned, label, factor):
    """What the named node gives times a factor."""
    node = next(node for node in pruned.graph.node if node.name.endswith(label) and node.op_type != "Cast")
    name = node.output[0]
    node.output[0] = f"{name}/right"
    pruned.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "planted/factor"))
    place = list(pruned.graph.node).index(node) + 1
    pruned.graph.node.insert(place, helper.make_node("Mul", [f"{name}/right", "planted/factor"], [name], name="planted/mul"))
    return pruned


@pytest.mark.parametrize("method", SCORED)
def test_scores_that_are_off_by_more_than_roundings_are_found(method):
    """Planted: the logits that score are ten percent too large; in fp16, with margins of the shares' own sizes."""
    rules = recipe(method)
    oracle = PrunedViT(model(), rules).eval()
    arrays = parity.reference_arrays(oracle, samples(), parity.module_logits(model(), pixels()), None)
    right, _, _ = surgery.rewrite(dense(), rules, has_cls=True)
    assert all(site["illegal_flips"] == 0 for site in parity.check(right, arrays, rules, oracle.geometry, oracle)["sites"])
    with pytest.raises(ExportError, match="disagree") as caught:
        parity.check(shifted(right, "cls_logits", 1.1), arrays, rules, oracle.geometry, oracle)
    assert "decisions" in caught.value.cause


@pytest.mark.parametrize("method", ["topk", "ats"])
def test_the_reference_scores_in_float32_as_the_graph_does(method, monkeypatch):
    """Queries and keys are rounded, the row that scores is not. Planted: a reference that rounds its logits too, as it does for attention."""
    from vitprune.backends.onnxruntime import make_session
    from vitprune.graph.lowering.rounding import emulated
    from vitprune.methods._dropping import reference as dropping
    from vitprune.methods.ats import reference as sampling
    from vitprune.vit import blocks

    graph, _, _ = surgery.rewrite(dense(), recipe(method), has_cls=True)
    row = next(node.output[0] for node in graph.graph.node if node.name == "vitprune/block1/prune/cls_row")
    graph.graph.output.append(helper.make_empty_tensor_value_info(row))
    given = make_session(emulated(graph)).run([row], {"image": pixels(4)})[0].transpose(0, 2, 1)

    def apart(score_row):
        found = []
        for module in (dropping, sampling):
            monkeypatch.setattr(module, "scoring_row", lambda *tensors: found.append(score_row(*tensors)) or found[-1])
        with torch.inference_mode():
            PrunedViT(model(), recipe(method)).eval()(torch.from_numpy(pixels(4)))
        return float(np.median(np.abs(found[0].numpy() / given - 1)))

    assert apart(blocks.scoring_row) < 1e-5
    assert apart(lambda query, key, bias: blocks.attention(query[:, :, :1], key, bias)[:, :, 0]) > 3e-5
