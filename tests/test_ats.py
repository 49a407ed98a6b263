"""ATS: reference and rewritten graph, two independent implementations, against the official golden and each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import ats, golden_model, images, run, sets, tiny
from vitprune.backends.onnxruntime import make_session
from vitprune.exporting.dense import dense_onnx
from vitprune.graph import surgery
from vitprune.methods.ats.rule import select
from vitprune.ops.token_sample import Attributes, token_sample
from vitprune.pipelines import reference
from vitprune.recipe import Recipe


@pytest.fixture(scope="module")
def golden():
    model, arrays = golden_model()
    return model, arrays, dense_onnx(model, (3, 64, 64), Recipe.load(ats(stages=[3])))


def official(shapes: str) -> Recipe:
    return Recipe.load({**ats(mode="official", num_samples=64), "graph": {"shapes": shapes}})


@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
def test_golden_reference_and_graph(golden, shapes):
    model, arrays, dense = golden
    oracle = reference(model, official(shapes))
    with torch.inference_mode():
        logits = oracle(torch.from_numpy(arrays["x"])).numpy()
    graph_logits, *graph_kept = run(surgery.rewrite(dense, official(shapes))[0], arrays["x"])
    for got in (logits, graph_logits):
        assert np.abs(got - arrays["logits"]).max() < 1e-4
    for site in range(9):
        wanted = [sorted(row) for row in sets(arrays["kept"][site])]
        assert sets(oracle.kept[site]) == wanted
        assert sets(graph_kept[site]) == wanted


def test_golden_margins(golden):
    """The smallest margin per site and image is the one the golden reports."""
    model, arrays, _ = golden
    oracle = reference(model, official("dynamic"))
    with torch.inference_mode():
        oracle(torch.from_numpy(arrays["x"]))
    for site in range(9):
        np.testing.assert_allclose(oracle.margin[site].amin(dim=1).numpy(), arrays["margin"][site], rtol=0.03, atol=2e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 60), st.integers(1, 80), st.booleans(), st.integers(0, 10**6))
def test_torch_selection_equals_the_specification(batch, patches, points, is_official, seed):
    rng = np.random.default_rng(seed)
    score = rng.gamma(0.5, size=(batch, patches)).astype(np.float32)
    valid = np.arange(patches)[None] < rng.integers(1, patches + 1, batch)[:, None]
    keep, margin = select(torch.from_numpy(score), torch.from_numpy(valid), points, is_official)
    mode = "inverse_transform_official" if is_official else "inverse_transform"
    index, real, _ = token_sample(score, valid, Attributes(mode, num_samples=points))
    for image in range(batch):
        assert np.flatnonzero(keep[image].numpy()).tolist() == index[image][real[image]].tolist()
    assert torch.isinf(margin[~torch.from_numpy(valid)]).all()


@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
@pytest.mark.parametrize("keys", [{"mode": "paper"}, {"mode": "official"}, {"value_norm": False}], ids=str)
def test_graph_equals_reference_and_batches_do_not_matter(golden, shapes, keys):
    model, _, dense = golden
    recipe = Recipe.load({**ats(stages=[2, 5, 8], num_samples=40, **keys), "graph": {"shapes": shapes}})
    x = images(8, seed=4)
    oracle = reference(model, recipe)
    with torch.inference_mode():
        whole = oracle(torch.from_numpy(x)).numpy()
        kept = [sets(rows) for rows in oracle.kept]
        alone = np.concatenate([oracle(torch.from_numpy(x[i : i + 1])).numpy() for i in range(8)])
    pruned = surgery.rewrite(dense, recipe)[0]
    graph_whole, *graph_kept = run(pruned, x)
    session = make_session(pruned.SerializeToString())
    graph_alone = np.concatenate([session.run(None, {"image": x[i : i + 1]})[0] for i in range(8)])
    assert np.abs(graph_whole - whole).max() < 1e-4
    assert [sets(rows) for rows in graph_kept] == kept
    assert np.abs(alone - whole).max() < 1e-5
    assert np.abs(graph_alone - graph_whole).max() < 1e-5
    for earlier, later in zip(kept, kept[1:], strict=False):
        assert all(set(b) <= set(a) for a, b in zip(earlier, later, strict=True))
    assert len({len(row) for row in kept[0]}) > 1, "the images must differ in their counts for this test to say anything"


def test_value_norm_changes_what_is_kept(golden):
    model, _, _ = golden
    x, kept = torch.from_numpy(images(2, seed=4)), []
    for value_norm in (True, False):
        oracle = reference(model, Recipe.load(ats(stages=[2], num_samples=40, value_norm=value_norm)))
        with torch.inference_mode():
            oracle(x)
        kept.append(sets(oracle.kept[0]))
    assert kept[0] != kept[1]


def test_kept_rows_are_rows_of_the_dense_block(golden):
    """The first site's output rows are exact rows of the dense block's output (methods.md §3.7)."""
    model, arrays, _ = golden
    recipe = Recipe.load(ats(stages=[0], num_samples=30))
    seen = {}
    x = torch.from_numpy(arrays["x"][:1])
    handles = [model.blocks[0].register_forward_hook(lambda _m, _i, out: seen.__setitem__("dense", out))]
    with torch.inference_mode():
        model(x)
        handles[0].remove()
        oracle = reference(model, recipe)
        original = oracle.steps.block
        oracle.steps.block = lambda index, block, rows, state: seen.setdefault(index, original(index, block, rows, state))
        oracle(x)
    kept = [0, *(p + 1 for p in sets(oracle.kept[0])[0])]
    assert torch.allclose(seen[0][0], seen["dense"][0, kept], atol=2e-6)


@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
def test_capacity_keeps_the_highest_scores_and_is_counted(golden, shapes):
    model, arrays, dense = golden
    recipe = Recipe.load({**ats(stages=[2, 4], num_samples=40, capacity=12), "graph": {"shapes": shapes}})
    oracle = reference(model, recipe)
    with torch.inference_mode():
        logits = oracle(torch.from_numpy(arrays["x"])).numpy()
    graph_logits, *graph_kept = run(surgery.rewrite(dense, recipe)[0], arrays["x"])
    assert np.abs(graph_logits - logits).max() < 1e-4
    assert [sets(rows) for rows in graph_kept] == [sets(rows) for rows in oracle.kept]
    assert all(len(row) <= 12 for row in sets(oracle.kept[0]))
    assert (oracle.overflow[0] > 0).all()


def test_content_of_pad_slots_is_irrelevant(golden, monkeypatch):
    """Fill the rows behind pad slots with large noise: no logit may move."""
    from vitprune.methods.ats import reference as query_sampling

    model, _, _ = golden
    recipe = Recipe.load({**ats(stages=[2, 5], num_samples=40), "graph": {"shapes": "padded"}})
    x = torch.from_numpy(images(3, seed=9))
    oracle = reference(model, recipe)
    with torch.inference_mode():
        clean = oracle(x)
        original = query_sampling.AtsReference.block

        def noisy(self, index, block, rows, state):
            out = original(self, index, block, rows, state)
            pads = torch.cat([torch.zeros(len(out), state.prefix, dtype=torch.bool), ~state.valid], dim=1)
            assert index < 2 or bool(pads.any())
            return torch.where(pads[..., None], 1e3 * torch.randn_like(out), out)

        monkeypatch.setattr(query_sampling.AtsReference, "block", noisy)
        assert torch.allclose(oracle(x), clean, atol=1e-5)


def test_bypass_is_the_dense_model_and_single_images_need_no_masks():
    model = tiny()
    recipe = Recipe.load({**ats(stages=[1, 2], num_samples=None), "graph": {"batch": 2}})
    x = images(2)
    with torch.inference_mode():
        dense_logits = model(torch.from_numpy(x)).numpy()
        assert np.abs(reference(model, recipe)(torch.from_numpy(x)).numpy() - dense_logits).max() < 1e-5
    single = Recipe.load({**ats(stages=[1, 2], num_samples=20), "graph": {"batch": 1}})
    pruned = surgery.rewrite(dense_onnx(model, (3, 64, 64), single), single)[0]
    assert not any("/bias" in node.name for node in pruned.graph.node)
    oracle = reference(model, single)
    with torch.inference_mode():
        logits = oracle(torch.from_numpy(x[:1])).numpy()
    assert np.abs(run(pruned, x[:1])[0] - logits).max() < 1e-4
