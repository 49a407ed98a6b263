"""DVT in half types, int8 and FP8: members' graphs against a reference that rounds at the same places."""

import json

import numpy as np
import onnx
import pytest
import torch
from dvt_support import lively_cascade, pixels, recipe, spread_thresholds

from vitprune.errors import ExportError, RecipeError
from vitprune.graph.precision import audit
from vitprune.methods.dvt import exporting, layers, ranges
from vitprune.methods.dvt.precision import in_precision
from vitprune.pipelines import export, validate
from vitprune.recipe import Recipe
from vitprune.support.precision import layer_names


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


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Bytes, with labels that mean nothing."""
    file = tmp_path_factory.mktemp("images") / "images.npz"
    rng = np.random.default_rng(0)
    np.savez(file, images=rng.uniform(0, 255, (24, 56, 56, 3)).astype(np.uint8), labels=rng.integers(0, 6, 24))
    return file


def quantised(cascade, mode="int8", **precision):
    chosen = rules(cascade, mode)
    given = {**chosen.precision.brief(), "images": 24, **precision}
    pre = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "crop_pct": 1.0}
    return Recipe.load({**chosen.to_dict(), "model": {**chosen.to_dict()["model"], **pre}, "precision": given})


@pytest.mark.parametrize(("mode", "rest"), [("int8", "fp16"), ("fp8", "fp32")])
def test_a_quantised_cascade_agrees_with_its_reference(cascade, images, mode, rest, tmp_path):
    made = export(cascade, quantised(cascade, mode, rest=rest), tmp_path / "b", data=images)
    section = made.recipe.precision
    names = [f"exit{number}.{name}" for number in (1, 2, 3) for name in layer_names(2)]
    assert sorted(section.ranges) == sorted(names)
    notes = json.loads((made.path / "reports" / "export.json").read_text())
    assert notes["check"]["layers_compared"] == len(names)
    assert notes["check"]["evidence"]["illegal_flips"] == 0
    assert notes["precision"]["layers"][mode] == 3 * 2 * 6  # per block q, k, v, projection and the MLP's two
    assert notes["precision"]["members"]["exit2"]["quantize"] == 2 * 4
    assert made.recipe.graph.opset >= (19 if mode == "fp8" else 18)
    verdict = validate(made, reference="stored")
    assert [gate.name for gate in verdict.gates if not gate.passed] == []
    again = export(cascade, made.recipe, tmp_path / "again")  # the recipe has all that images gave
    for number in (1, 2, 3):
        one, other = (onnx.load(path / f"exit{number}.onnx") for path in (made.path, again.path))
        assert [node.SerializeToString() for node in one.graph.node] == [node.SerializeToString() for node in other.graph.node]


def test_every_member_has_ranges_of_its_own_and_a_wrong_one_is_named(cascade, images, tmp_path, monkeypatch):
    """Planted: the second member's graph with a scale that is 2 % off, which whole logits would hardly show."""
    made = export(cascade, quantised(cascade), tmp_path / "b", data=images)
    found = made.recipe.precision.ranges
    assert len({round(found[f"exit{number}.blocks.1.mlp.fc1"], 6) for number in (1, 2, 3)}) == 3
    right = exporting.member_graphs

    def spoilt(*given):
        graphs = right(*given)
        scale = next(tensor for tensor in graphs[1].graph.initializer if tensor.name == "blocks.0.attn.proj/scale")
        scale.CopyFrom(onnx.numpy_helper.from_array(np.float32(1.02) * onnx.numpy_helper.to_array(scale), scale.name))
        return graphs

    monkeypatch.setattr(exporting, "member_graphs", spoilt)
    with pytest.raises(ExportError) as caught:
        export(cascade, made.recipe, tmp_path / "wrong")
    assert (caught.value.code, "exit2.blocks.0.attn.proj" in caught.value.cause) == ("VP330", True)


def test_patterns_name_all_members_or_one(cascade):
    section = quantised(cascade, exclude=["blocks.0.*", "exit2.blocks.1.mlp.fc2"]).precision
    left = ranges.quantised_layers(section, 2)
    assert {name for name in left if name.startswith("exit2.")} == {
        f"exit2.blocks.1.{p}" for p in ("attn.qkv", "attn.proj", "mlp.fc1")
    }
    assert len(left) == 4 + 3 + 4
    member = layers.of_member(section, 2, 2)
    assert layers.together(section, [member] * 3).ranges == {}


@pytest.mark.parametrize(
    ("keys", "code"),
    [({"exclude": ["exit4.*"]}, "VP113"), ({"auto_exclude": True}, "VP115"), ({"exclude": ["*"]}, "VP129"), ({}, "VP117")],
)
def test_what_a_cascade_cannot_do_is_refused_early(cascade, keys, code, tmp_path):
    with pytest.raises(RecipeError) as caught:
        export(cascade, quantised(cascade, **keys), tmp_path / "b")
    assert caught.value.code == code
    assert caught.value.cause
    assert caught.value.next_step
    assert not (tmp_path / "b").exists()


def test_overflow_is_looked_for_in_every_member(tmp_path):
    """Planted in the second member alone: hidden numbers beyond fp16 whose result is as before."""
    spoilt = lively_cascade()
    with torch.no_grad():
        mlp = spoilt.members[1].blocks[1].mlp
        mlp.fc1.bias[3] += 9e4
        mlp.fc2.weight[:, 3] *= 1e-5
    made = export(spoilt, rules(spoilt, "fp16"), tmp_path / "b")
    named = {"exit2.blocks.1.mlp.fc1", "exit2.blocks.1.mlp.fc2"}
    assert set(made.recipe.precision.keep_fp32) == named
    notes = json.loads((made.path / "reports" / "export.json").read_text())
    assert set(notes["precision"]["overflow"]) == named
    assert notes["precision"]["members"]["exit2"]["kept_fp32"] == ["blocks.1.mlp.fc1", "blocks.1.mlp.fc2"]
    assert notes["precision"]["members"]["exit1"]["kept_fp32"] == []


def test_what_a_type_costs_is_gated_where_images_are_given(cascade, images, tmp_path):
    from vitprune.methods.dvt import validating

    made = export(cascade, quantised(cascade), tmp_path / "b", data=images)
    plain = validating._made
    validating._made = lambda bundle, weights: cascade
    try:
        verdict = validate(made, data=images, samples=24)
    finally:
        validating._made = plain
    assert {"precision_agreement", "precision_drop"} <= {gate.name for gate in verdict.gates}
