"""Where a graph leaves its reference first, numerics with locked decisions, and the images that differ most."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from helpers import ats, images
from vitprune.backends import Result
from vitprune.bundle import open_bundle
from vitprune.graph import surgery
from vitprune.pipelines import validate
from vitprune.recipe import Recipe
from vitprune.validation.divergence import first_divergence
from vitprune.validation.evidence import differing, locked, worst
from vitprune.vit.pruned import PrunedViT

RECIPES = {
    "ats": ats(stages=[1, 2], num_samples=30),
    "ats padded": ats(stages=[1, 2], num_samples=30) | {"graph": {"shapes": "padded"}},
    "ats fp16": ats(stages=[1, 2], num_samples=30) | {"precision": {"mode": "fp16"}},
    "tome": {"prune": {"method": "tome", "r": 8}},
    "evit": {"prune": {"method": "evit", "keep_rate": 0.7, "stages": [1, 2]}},
}


def pair(name, tiny_model, tiny_dense):
    recipe = Recipe.load(RECIPES[name])
    return surgery.rewrite(tiny_dense, recipe, has_cls=True)[0], PrunedViT(tiny_model, recipe).eval(), recipe.precision.mode


@pytest.mark.parametrize("name", RECIPES)
def test_a_graph_that_is_right_differs_nowhere(name, tiny_model, tiny_dense):
    model, oracle, mode = pair(name, tiny_model, tiny_dense)
    assert first_divergence(model, oracle, images(2), 1, mode) is None


def spoilt(model, tensor):
    """The graph with one weight changed."""
    found = next(one for one in model.graph.initializer if one.name == tensor)
    array = numpy_helper.to_array(found).copy()
    array.flat[: array.size // 2] *= 1.5
    found.CopyFrom(numpy_helper.from_array(array, tensor))
    return model


def test_planted_defects_are_found_where_they_are(tiny_model, tiny_dense):
    model, oracle, mode = pair("ats", tiny_model, tiny_dense)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    found = first_divergence(spoilt(copy, "vitprune/block2/attn/v.weight"), oracle, images(1), 0, mode)
    assert (found.block, found.part, found.before) == (2, "attn/v", "block 2, attn/k")
    assert found.tensor in found.text()
    # The second linear map of block 1's MLP stands between its projection and the norm of block 2.
    reader = {node.output[0]: node for node in model.graph.node}
    rows = reader["vitprune/block2/attn/k/matmul"].input[0]
    bias = reader[reader[rows].input[0]].input[1]
    weight = reader[reader[bias].input[0]].input[1]
    found = first_divergence(spoilt(model, weight), oracle, images(1), 0, mode)
    assert (found.block, found.part, found.before) == (2, "norm1", "block 1, attn/proj")


def test_other_decisions_are_named_as_such(tiny_model, tiny_dense):
    """The graph of a recipe that keeps fewer patches: nothing differs before the site decides."""
    _, oracle, mode = pair("evit", tiny_model, tiny_dense)
    fewer = Recipe.load({"prune": {"method": "evit", "keep_rate": 0.6, "stages": [1, 2]}})
    found = first_divergence(surgery.rewrite(tiny_dense, fewer, has_cls=True)[0], oracle, images(1), 0, mode)
    assert (found.block, found.part) == (1, "kept")


def test_a_failing_validation_says_where_it_begins(bundle_copy):
    """One weight of block 2 of the bundle's own graph is changed, with a manifest that fits."""
    bundle = open_bundle(bundle_copy)
    onnx.save(spoilt(onnx.load(str(bundle.model_path)), "vitprune/block2/attn/v.weight"), str(bundle.model_path))
    bundle.add_files(["model.onnx"])
    verdict = validate(open_bundle(bundle_copy), reference="torch", samples=8)
    assert verdict.status == "failed"
    evidence = verdict.document()["comparison"]["evidence"]
    assert (evidence["divergence"]["block"], evidence["divergence"]["part"]) == (2, "attn/v")
    assert evidence["worst_images"][0]["image"] == evidence["divergence"]["image"]


def test_numerics_are_judged_apart_from_decisions():
    logits = np.zeros((3, 4), np.float32)
    run = logits.copy()
    run[0, 0], run[1, 0], run[2, 0] = 0.001, 2.0, 3.0
    kept = np.array([[0, 1], [0, 2], [0, 3]])
    reference = {"logits": logits, "kept_5": np.array([[0, 1], [0, 1], [0, 1]]), "labels": np.array([0, 1, 2])}
    followed = np.full((3, 4), np.nan, np.float32)
    followed[1] = run[1] + 0.002
    result = Result(run, [kept])
    first = differing(result, reference, [5])
    assert first.tolist() == [-1, 5, 5]
    found = locked(result, reference | {"logits_followed": followed}, first)
    assert (found["images"], found["followed"], found["unlocked"]) == (2, 1, 1)
    assert found["logits_max_abs"] == pytest.approx(0.002, rel=1e-3)
    assert found["free_max_abs"] == 3.0
    listed = worst(result, reference, first)
    assert [one["image"] for one in listed] == [2, 1, 0]
    assert listed[0]["differs_from_block"] == 5
    assert listed[0]["label"] == 2
