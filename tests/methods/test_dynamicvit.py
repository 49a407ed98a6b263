import math

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
)
from safetensors.numpy import save_file

from vitprune import methods
from vitprune.errors import RecipeError
from vitprune.graph.surgery import rewrite
from vitprune.methods.base import Geometry, Site
from vitprune.methods.dynamicvit import rule as dynamicvit
from vitprune.methods.dynamicvit import weights as predictor
from vitprune.methods.dynamicvit.keys import DynamicVitOptions


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The golden predictor in both file formats."""
    folder = tmp_path_factory.mktemp("predictor")
    weights = {key[2:]: value for key, value in golden("dynamicvit_r70").items() if key.startswith("w/score_predictor")}
    torch.save({"model": {key: torch.tensor(value) for key, value in weights.items()}}, folder / "p.pth")
    save_file(weights, folder / "p.safetensors")
    return folder


@pytest.mark.parametrize(("shapes", "file"), [("dynamic", "p.pth"), ("padded", "p.safetensors")])
def test_golden_is_reproduced_by_reference_and_graph(checkpoint, shapes, file):
    data = golden("dynamicvit_r70")
    rules = recipe({"method": "dynamicvit", "predictor": str(checkpoint / file)}, shapes)
    expected = [golden_kept(stage) for stage in data["kept"]]
    logits, kept, judge = run_reference(golden_model("dynamicvit_r70"), rules, data["x"])
    assert np.abs(logits - data["logits"]).max() < TOLERANCE
    assert [listed(stage) for stage in kept] == expected
    for margin, official in zip(judge.margin, data["margin"], strict=True):
        np.testing.assert_allclose(margin.numpy().min(axis=1), official, atol=1e-5)
    model, _, notes = rewrite(golden_dense("dynamicvit_r70"), rules)
    logits, kept = run_graph(model, data["x"])
    assert np.abs(logits - data["logits"]).max() < TOLERANCE
    assert [listed(stage) for stage in kept] == expected
    assert notes["predictor"]["source"] == file
    assert "warnings" not in notes


def test_predictor_weights_are_initialisers(checkpoint):
    rules = recipe({"method": "dynamicvit", "predictor": str(checkpoint / "p.pth")})
    names = {tensor.name for tensor in pruned(golden_dense("dynamicvit_r70"), rules).graph.initializer}
    for block in (3, 6, 9):
        split = [f"{part}.{half}" for part in ("in_conv.1", "out_conv.0") for half in ("local", "global")]
        for part in ("in_conv.0", *split, "out_conv.2", "out_conv.4.gap"):
            assert f"vitprune/block{block}/predictor/{part}.weight" in names


def test_score_mixes_a_local_and_a_global_half():
    """Two channels; every layer the identity where shapes allow: the second channel is the mean over the patches."""
    weights = {
        "in_conv.0.weight": torch.ones(2), "in_conv.0.bias": torch.zeros(2),
        "in_conv.1.weight": torch.eye(2), "in_conv.1.bias": torch.zeros(2),
        "out_conv.0.weight": torch.tensor([[1.0, 2.0]]), "out_conv.0.bias": torch.zeros(1),
        "out_conv.2.weight": torch.ones(1, 1), "out_conv.2.bias": torch.zeros(1),
        "out_conv.4.weight": torch.tensor([[1.0], [0.0]]), "out_conv.4.bias": torch.zeros(2),
    }  # fmt: skip
    patches = torch.tensor([[[3.0, 1.0], [1.0, 3.0], [5.0, 1.0]]])

    def gelu(v):
        return v / 2 * (1 + math.erf(v / math.sqrt(2)))

    high, low = gelu(1 / math.sqrt(1 + 1e-5)), gelu(-1 / math.sqrt(1 + 1e-5))
    second = (low + high + gelu(-2 / math.sqrt(4 + 1e-5))) / 3
    rows = [gelu(gelu(first + 2 * second)) for first in (high, low, gelu(2 / math.sqrt(4 + 1e-5)))]
    expected = [-math.log(1 + math.exp(-row)) for row in rows]
    assert dynamicvit.score(patches, weights)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_counts_follow_from_the_real_number_of_patches():
    def counts(patches, **prune):
        geometry = Geometry(depth=12, patches=patches, prefix=1, width=64, heads=4, mlp_hidden=256)
        return [site.limit for site in methods.get("dynamicvit").sites(recipe({"method": "dynamicvit", **prune}).prune, geometry)]

    assert counts(196) == [137, 96, 67]
    assert counts(64) == [44, 31, 21]
    assert counts(576) == [403, 282, 197]
    assert counts(100, keep_rate=[0.5, 0.4, 0.1]) == [50, 40, 10]
    assert counts(196, keep=[100, 50, 20]) == [100, 50, 20]
    assert counts(64, keep_rate=1.0) == [64, 64, 64]


@pytest.mark.parametrize(("stages", "expected"), [([3, 6, 9], 2.878), ([4, 7, 10], 3.133)])
def test_cost_check_values(stages, expected):
    prune = {"method": "dynamicvit", "stages": stages}
    assert giga_macs(prune, deit_small()) == pytest.approx(expected, abs=1e-3)
    assert giga_macs(prune, deit_small()) + 1000 * 384 / 1e9 == pytest.approx(expected, abs=5e-4)  # with the classifier


@pytest.mark.parametrize(
    ("prune", "code"), [({"keep_rate": 0.01}, "VP120"), ({"keep_rate": [0.5, 0.6, 0.1]}, "VP120"), ({"keep": [10, 5]}, "VP111")]
)
def test_bad_counts_say_what_to_do(prune, code):
    with pytest.raises(RecipeError) as error:
        methods.get("dynamicvit").sites(recipe({"method": "dynamicvit", **prune}).prune, deit_small())
    assert error.value.code == code
    assert error.value.next_step


def site(width=64, stage=0):
    return [Site(3, 64, 44, DynamicVitOptions(stage=stage, width=width))]


def test_checkpoints_that_do_not_fit_are_refused(checkpoint, tmp_path):
    def load(path, sites):
        with pytest.raises(RecipeError) as error:
            predictor.load(recipe({"method": "dynamicvit", "predictor": path}).prune, sites)
        assert error.value.cause
        assert error.value.next_step
        return error.value

    assert load(None, site()).code == "VP124"
    assert load(str(tmp_path / "none.pth"), site()).code == "VP125"
    (tmp_path / "bad.pth").write_bytes(b"not a checkpoint")
    assert load(str(tmp_path / "bad.pth"), site()).code == "VP125"
    (tmp_path / "bad.safetensors").write_bytes(b"not a checkpoint")
    assert load(str(tmp_path / "bad.safetensors"), site()).code == "VP125"
    wide = load(str(checkpoint / "p.pth"), site(width=384))
    assert wide.code == "VP126"
    assert "[64], expected [384]" in wide.cause
    fourth = load(str(checkpoint / "p.safetensors"), site(stage=3))
    assert fourth.code == "VP126"
    assert "score_predictor.3.in_conv.0.weight is missing" in fourth.cause


def test_reference_and_graph_refuse_a_missing_predictor():
    rules = recipe({"method": "dynamicvit"})
    with pytest.raises(RecipeError, match="VP124"):
        run_reference(golden_model("dynamicvit_r70"), rules, golden("dynamicvit_r70")["x"])
    with pytest.raises(RecipeError, match="VP124"):
        pruned(golden_dense("dynamicvit_r70"), rules)


def test_untrained_predictor_is_reproducible_and_flagged():
    params = recipe({"method": "dynamicvit", "predictor": "random"}).prune
    other = recipe({"method": "dynamicvit", "predictor": "random", "predictor_seed": 1}).prune
    first, again, third = predictor.load(params, site()), predictor.load(params, site()), predictor.load(other, site())
    assert {name: w.shape for name, w in first[0].items()} == predictor.shapes(64)
    assert all(np.array_equal(first[0][name], again[0][name]) for name in first[0])
    assert not np.array_equal(first[0]["in_conv.1.weight"], third[0]["in_conv.1.weight"])
    rules = recipe({"method": "dynamicvit", "predictor": "random"})
    model, _, notes = rewrite(golden_dense("dynamicvit_r70"), rules)
    assert "UNTRAINED" in notes["warnings"][0]
    assert notes["predictor"]["trained"] is False
    assert any("predictor_untrained" in tensor.name for tensor in model.graph.initializer)
    _, _, judge = run_reference(golden_model("dynamicvit_r70"), rules, golden("dynamicvit_r70")["x"][:1])
    assert "UNTRAINED" in judge.steps.warning


def test_bundles_store_the_file_name_only():
    assert recipe({"method": "dynamicvit", "predictor": "/some/where/p.pth"}).prune.portable().predictor == "p.pth"
    assert recipe({"method": "dynamicvit", "predictor": "random"}).prune.portable().predictor == "random"
