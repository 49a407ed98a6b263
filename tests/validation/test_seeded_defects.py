"""Defects that do not stand in the surgery: files and settings that are wrong though nothing is damaged. Each is caught by the gate named in docs/checks.md."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import vitprune
from helpers import ats
from vitprune import engines, targets
from vitprune.bundle import open_bundle
from vitprune.errors import LoadError
from vitprune.pipelines import validate

PAGE = Path(__file__).parents[2] / "docs" / "checks.md"
HERE = "tests/validation/test_seeded_defects.py"
SEEDED = {
    "another mean than the one in the graph": ("preprocessing (VP335)", "tests/graph/test_fronts.py::test_another_mean_than_the_graphs_is_refused"),
    "another mean than the model was trained with, in a recipe": ("dense_top1", f"{HERE}::test_a_mean_that_the_model_was_not_trained_with"),
    "class head with two classes swapped": ("logits_max_abs, top1_agreement", f"{HERE}::test_a_permuted_class_head"),
    "capacity too small": ("top1_drop", f"{HERE}::test_a_capacity_that_is_too_small"),
    "the engine of another model": ("engine's model (VP639), logits_max_abs", f"{HERE}::test_the_engine_of_another_model"),
}  # fmt: skip


def test_a_mean_that_the_model_was_not_trained_with(tmp_path):
    """The shipped model, known to be right on 91 % of its test images, with another dataset's mean: parity holds."""
    from vitprune.support.resources import recipes_folder

    found = {}
    for name, mean in (("right", 0.2860), ("wrong", 0.9)):
        settings = [f"model.mean=[{mean}]", "validate.gates.dense_top1=87", "validate.gates.top1_drop=null"]
        bundle = vitprune.export(None, vitprune.Recipe.load("fashion_mnist/dynamicvit", settings), tmp_path / name)
        found[name] = validate(bundle, data=recipes_folder() / "fashion_mnist" / "test_images.npz", samples=400)
    assert failed(found["right"]) == []
    assert failed(found["wrong"]) == ["dense_top1"]


def failed(verdict) -> list[str]:
    return [gate.name for gate in verdict.gates if not gate.passed]


def test_a_permuted_class_head(bundle_copy):
    """Hashes fit, as those of a bundle that was written so."""
    model = onnx.load(str(bundle_copy / "model.onnx"))
    head = max((tensor for tensor in model.graph.initializer if 10 in tensor.dims), key=lambda tensor: len(tensor.raw_data))
    weights = numpy_helper.to_array(head).copy()
    axis = list(weights.shape).index(10)
    order = np.array([1, 0, *range(2, 10)])
    head.CopyFrom(numpy_helper.from_array(np.take(weights, order, axis), head.name))
    onnx.save(model, str(bundle_copy / "model.onnx"))
    open_bundle_unchecked(bundle_copy).add_files(["model.onnx"])
    verdict = validate(open_bundle(bundle_copy), reference="stored")
    assert failed(verdict) == ["logits_max_abs", "top1_agreement"]
    assert failed(validate(open_bundle(bundle_copy), samples=8)) == ["logits_max_abs", "top1_agreement"]


def open_bundle_unchecked(folder):
    """A bundle whose files are not compared with its manifest, as the one who writes it holds it."""
    from vitprune.bundle import Manifest
    from vitprune.support.hashing import sha256_of

    manifest, digest = json.loads((folder / "manifest.json").read_text()), sha256_of(folder / "model.onnx")
    manifest["files"]["model.onnx"] = digest
    (folder / "manifest.json").write_text(Manifest.model_validate(manifest).sealed().text())
    return open_bundle(folder)


def test_a_capacity_that_is_too_small(made_bundle, tiny_dense, tmp_path):
    """Images are labelled as the dense model sees them, so that it is right on all of them. Two patches of thirty are too few to follow it."""
    onnx.save(tiny_dense, str(tmp_path / "dense.onnx"))
    from vitprune.backends.onnxruntime import make_session

    pictures = np.random.default_rng(0).integers(0, 256, (200, 64, 64, 3), dtype=np.uint8)
    pixels = ((pictures / np.float32(255) - np.float32(0.5)) / np.float32(0.05)).astype(np.float32).transpose(0, 3, 1, 2)
    session = make_session(tiny_dense.SerializeToString())
    labels = np.concatenate(
        [session.run(None, {"image": part})[0].argmax(1) for part in np.split(np.ascontiguousarray(pixels), 25)]
    )
    np.savez(tmp_path / "data.npz", images=pictures, labels=labels)
    stated = {"model": {"mean": [0.5] * 3, "std": [0.05] * 3, "interpolation": "bicubic", "crop_pct": 1.0}}
    gates = {"validate": {"samples": 200, "gates": {"top1_drop": 5.0}}}
    found = {}
    for name, capacity in (("enough", 30), ("small", 2)):
        recipe = {**stated, **gates, **ats(stages=[1], num_samples=30, capacity=capacity), "graph": {"shapes": "padded"}}
        bundle = vitprune.rewrite(
            tmp_path / "dense.onnx", vitprune.Recipe.load(recipe), tmp_path / name, data=tmp_path / "data.npz"
        )
        found[name] = validate(bundle, reference="stored", samples=200)
    assert found["small"].comparison.sites[0].overflowed > 100
    assert "top1_drop" in failed(found["small"])
    assert "top1_drop" not in failed(found["enough"])
    assert found["enough"].comparison.sites[0].overflowed == 0


def test_the_engine_of_another_model(made_bundle, bundle_copy, tiny_dense, tmp_path):
    """Built by vitprune, whole, listed: but for a bundle of the same sizes with other weights. Then its engine.json is made to fit, too."""
    onnx.save(tiny_dense, str(tmp_path / "dense.onnx"))
    other = vitprune.rewrite(tmp_path / "dense.onnx", made_bundle.recipe, tmp_path / "other")
    engines.build_engine(other, targets.load("onnxruntime-cpu"), plugin="none")
    shutil.copytree(other.engine_path("onnxruntime-cpu"), bundle_copy / "engines" / "onnxruntime-cpu")
    open_bundle(bundle_copy).list_engine("onnxruntime-cpu")
    with pytest.raises(LoadError) as caught:
        validate(open_bundle(bundle_copy), target="onnxruntime-cpu", samples=8)
    assert caught.value.code == "VP639"
    facts = bundle_copy / "engines" / "onnxruntime-cpu" / "engine.json"
    told = json.loads(facts.read_text()) | {"model_sha256": made_bundle.manifest.files["model.onnx"]}
    facts.write_text(json.dumps(told))
    open_bundle(bundle_copy).list_engine("onnxruntime-cpu")
    assert "logits_max_abs" in failed(validate(open_bundle(bundle_copy), target="onnxruntime-cpu", samples=8))


def test_the_page_shows_them_with_their_tests():
    rows = [f"| {what} | {gate} | `{test.removeprefix('tests/')}` |" for what, (gate, test) in SEEDED.items()]
    text = PAGE.read_text(encoding="utf-8")
    assert [row for row in rows if row not in text] == []
    for _, test in SEEDED.values():
        file, name = test.split("::")
        assert f"def {name}(" in (PAGE.parents[1] / file).read_text(encoding="utf-8")
