"""DVT in half types: members' graphs against a reference that rounds at the same places."""

import json

import numpy as np
import onnx
import pytest
import torch
from dvt_support import lively_cascade, pixels, recipe, spread_thresholds

from vitprune.graph.precision import audit
from vitprune.methods.dvt import exporting
from vitprune.methods.dvt.half import in_precision
from vitprune.pipelines import export, validate


@pytest.fixture(scope="module")
def cascade():
    return lively_cascade()


def rules(cascade, mode, **keys):
    limits = [round(limit, 6) for limit in spread_thresholds(cascade, pixels(24))]
    return recipe(limits, validate={"samples": 12}, **keys).with_("precision.mode", mode)


@pytest.fixture(scope="module")
def bundle(cascade, tmp_path_factory):
    return export(cascade, rules(cascade, "fp16", single_graph=True), tmp_path_factory.mktemp("dvt") / "half")


def test_a_cascade_in_fp16_agrees_with_its_reference(bundle):
    check = json.loads((bundle.path / "reports" / "export.json").read_text())["check"]
    assert 0 < check["logits_max_abs"] < 0.05
    assert check["evidence"]["illegal_flips"] == 0
    for number in (1, 2, 3):
        graph = onnx.load(bundle.path / f"exit{number}.onnx")
        assert audit.layers_by_type(graph)["fp16"] == 2 * 8
        assert all(
            value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for value in (*graph.graph.input, *graph.graph.output)
        )
    verdict = validate(bundle, reference="stored")
    assert [gate.name for gate in verdict.gates if not gate.passed] == []
    assert "decision_types" in {gate.name for gate in verdict.gates}


def test_a_bfloat16_reference_is_not_taken_for_a_float16_one(bundle, cascade):
    """The tolerance of fp16 tells its graphs from a reference that rounds more coarsely."""
    arrays = bundle.samples()
    wrong = dict(arrays)
    with torch.inference_mode():
        coarse = in_precision(cascade, bundle.recipe.with_("precision.mode", "bf16"))(torch.from_numpy(arrays["images"]))
    for number, logits in enumerate(coarse, start=1):
        wrong[f"logits_exit{number}"] = logits.numpy()
    graphs = [onnx.load(bundle.path / f"exit{number}.onnx") for number in (1, 2, 3)]
    exporting._check(graphs, arrays, bundle.recipe)
    with pytest.raises(Exception, match="disagree") as caught:
        exporting._check(graphs, wrong, bundle.recipe)
    assert caught.value.code == "VP330"


def test_float32_is_the_cascade_itself_and_named_layers_stay(cascade):
    assert in_precision(cascade, rules(cascade, "fp32")) is cascade
    image = torch.from_numpy(pixels(2))
    with torch.inference_mode():
        full = cascade(image)
        kept = in_precision(cascade, rules(cascade, "fp16").with_("precision.keep_fp32", ["*"]))(image)
        half = in_precision(cascade, rules(cascade, "fp16"))(image)
    assert all(np.allclose(one, other, atol=1e-5) for one, other in zip(full, kept, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(full, half, strict=True))
