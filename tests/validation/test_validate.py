"""Gates: what passes, what fails, and what may not be claimed."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from vitprune.backends import Result
from vitprune.bundle import open_bundle
from vitprune.errors import LoadError, RecipeError
from vitprune.pipelines import validate
from vitprune.recipe import Gates
from vitprune.reports.junit import junit_xml
from vitprune.validation.compare import compare, failures


def reference_arrays(**extra):
    return {"logits": np.array([[0.0, 1.0], [1.0, 0.0]], np.float32), "kept_3": np.array([[0, 2, 5], [1, 2, -1]]), **extra}


def test_legal_and_illegal_flips():
    margin = np.full((2, 6), 1e-2)
    margin[0, 4] = margin[0, 5] = 1e-7
    arrays = reference_arrays(margin_3=margin)
    flipped = Result(arrays["logits"] + np.array([[0.5], [0.0]], np.float32), [np.array([[0, 2, 4], [1, 2, -1]])])
    comparison = compare(flipped, arrays, [3], Gates())
    assert (comparison.sites[0].legal_flips, comparison.sites[0].illegal_flips) == (2, 0)
    assert comparison.logits_compared == 1
    assert not failures(comparison, Gates())
    illegal = Result(arrays["logits"], [np.array([[0, 2, 5], [1, 3, -1]])])
    broken = failures(compare(illegal, arrays, [3], Gates()), Gates())
    assert [gate.name for gate in broken] == ["decisions"]


def test_flips_without_known_margins_are_illegal():
    comparison = compare(
        Result(reference_arrays()["logits"], [np.array([[0, 2, 4], [1, 2, -1]])]), reference_arrays(), [3], Gates()
    )
    assert comparison.sites[0].illegal_flips == 2


def test_logit_top1_and_accuracy_gates():
    arrays = reference_arrays(labels=np.array([1, 0]), dense_logits=reference_arrays()["logits"])
    swapped = Result(arrays["logits"][:, ::-1].copy(), [arrays["kept_3"]])
    names = {gate.name for gate in failures(compare(swapped, arrays, [3], Gates(top1_drop=1.0)), Gates(top1_drop=1.0))}
    assert names == {"logits_max_abs", "top1_agreement", "top1_drop"}
    nan = Result(np.full((2, 2), np.nan, np.float32), [arrays["kept_3"]])
    assert "logits_max_abs" in {gate.name for gate in failures(compare(nan, arrays, [3], Gates()), Gates())}


def test_live_and_stored_reference(made_bundle):
    live, stored = validate(made_bundle, reference="torch"), validate(made_bundle, reference="stored")
    assert live.passed
    assert stored.passed
    assert live.reference == "PyTorch, live"
    assert live.rung == "graph = reference on CPU"
    assert 0 < live.macs["ratio"] < 1
    assert live.comparison.logits_max_abs < 1e-4


def test_a_wrong_graph_fails(bundle_copy, made_bundle):
    """Swap the bundle's samples for those of other weights: validation must say no."""
    bundle = open_bundle(bundle_copy)
    arrays = bundle.samples()
    arrays["logits"] = arrays["logits"] + 1e-2
    np.savez(bundle_copy / "samples.npz", **arrays)
    bundle.add_files(["samples.npz"])
    verdict = validate(open_bundle(bundle_copy), reference="stored")
    assert not verdict.passed
    document = ElementTree.fromstring(junit_xml([verdict.document()]))
    assert document.attrib["failures"] == "1"
    assert [case.attrib["name"] for case in document.iter("testcase") if case.find("failure") is not None] == ["logits_max_abs"]


def test_gated_accuracy_needs_labels(made_bundle):
    recipe = made_bundle.recipe.with_("validate.gates.top1_drop", 1.0)
    gated = type(made_bundle)(made_bundle.path, made_bundle.manifest, recipe)
    with pytest.raises(RecipeError) as error:
        validate(gated, reference="stored")
    assert error.value.code == "VP109"
    assert "labels" in error.value.next_step


def test_accuracy_from_a_data_file(made_bundle, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", images=rng.integers(0, 255, (12, 64, 64, 3), dtype=np.uint8), labels=rng.integers(0, 10, 12))
    verdict = validate(made_bundle, data=tmp_path / "data.npz", samples=10)
    assert verdict.comparison.images == 10
    assert set(verdict.comparison.accuracy) == {"pruned", "reference", "dense"}
    assert verdict.rung == "task accuracy"
    with pytest.raises(LoadError, match="VP620"):
        validate(made_bundle, data=tmp_path / "none.npz")
    np.savez(tmp_path / "wrong.npz", images=-np.ones((2, 3, 32, 32), np.float32))  # preprocessed: nothing can be resized
    with pytest.raises(LoadError, match="VP621"):
        validate(made_bundle, data=tmp_path / "wrong.npz")


def test_a_module_of_ones_own_falls_back_to_stored_samples(made_bundle):
    source = {**made_bundle.manifest.model, "source": {"kind": "module"}}
    foreign = type(made_bundle)(made_bundle.path, made_bundle.manifest.model_copy(update={"model": source}), made_bundle.recipe)
    verdict = validate(foreign)
    assert verdict.passed
    assert verdict.reference.startswith("stored samples")
    with pytest.raises(LoadError, match="VP613"):
        validate(foreign, reference="torch")
    assert replace(verdict, gates=[]).passed


def test_any_two_runtimes(bundle_copy, monkeypatch):
    """The graph against the engine, the engine against PyTorch as a runtime; a runtime that differs is seen."""
    from vitprune import engines, targets
    from vitprune.backends import onnxruntime

    engines.build_engine(open_bundle(bundle_copy), targets.load("onnxruntime-cpu"), plugin="none")
    bundle = open_bundle(bundle_copy)
    pairs = [
        ({"backend": "onnxruntime"}, "target:onnxruntime-cpu", "onnxruntime (onnxruntime-cpu)"),
        ({"backend": "onnxruntime", "target": "onnxruntime-cpu"}, "torch-runtime", "torch"),
        ({"backend": "torch"}, "onnxruntime", "onnxruntime"),
    ]
    for how, reference, label in pairs:
        verdict = validate(bundle, **how, reference="torch" if reference == "torch-runtime" else reference, samples=8)
        assert verdict.passed
        assert verdict.reference == ("PyTorch, live" if label == "torch" else label)
    run = onnxruntime.Session.run
    monkeypatch.setattr(onnxruntime.Session, "run", lambda self, x: replace(run(self, x), logits=run(self, x).logits + 0.01))
    verdict = validate(bundle, backend="torch", reference="onnxruntime", samples=8)
    assert [gate.name for gate in verdict.gates if not gate.passed] == ["logits_max_abs"]
    assert "nothing is said of the PyTorch reference" in verdict.rung
