"""Forms of exported models for runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import vitprune
from vitprune.graph.lowering import tensorrt as variants
from vitprune.support.versions import Version

RECIPES: dict[str, dict[str, Any]] = {
    "dynamic": {"prune": {"method": "ats", "stages": [1, 2], "num_samples": 20}},
    "padded": {"prune": {"method": "ats", "stages": [1], "num_samples": 20, "capacity": 12}, "graph": {"shapes": "padded"}},
    "official": {"prune": {"method": "ats", "mode": "official", "stages": [1, 2], "num_samples": 20}},
}


@pytest.fixture(scope="module", params=sorted(RECIPES))
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> vitprune.Bundle:
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    torch.manual_seed(0)
    module = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, patch_size=8, embed_dim=64, depth=4, num_heads=4, num_classes=10
    )
    path = tmp_path_factory.mktemp("variants") / request.param
    return vitprune.export(module, vitprune.Recipe.load(RECIPES[request.param]), path)


@pytest.fixture(scope="module")
def model(bundle: vitprune.Bundle) -> onnx.ModelProto:
    return onnx.load(str(bundle.model_path))


FORMS = [("10.3.0", True), ("10.6.1", True), ("10.7", True), ("10.3", False), ("10.16.2", False), ("11.4.1", True)]


@pytest.mark.parametrize(("version", "plugin"), FORMS)
def test_every_form_is_valid_and_keeps_its_promises(model: onnx.ModelProto, version: str, plugin: bool) -> None:
    written, form = variants.for_tensorrt(model.SerializeToString(), Version.parse(version), plugin)
    made = onnx.load_from_string(written)
    onnx.checker.check_model(made)
    assert variants.broken_promises(made) == []
    assert variants.opset(made) <= 20
    assert made.ir_version <= 10
    if plugin and Version.parse(version) < variants.PLUGIN_WINS:
        assert (form, len(made.functions)) == ("plugin", 0)
        assert len(variants.token_samples(made)) == len(variants.token_samples(model)) > 0


def test_old_tensorrt_never_sees_a_function(model: onnx.ModelProto) -> None:
    for plugin in (True, False):
        written, _ = variants.for_tensorrt(model.SerializeToString(), Version.parse("10.6.9"), plugin)
        assert not onnx.load_from_string(written).functions


def test_inlined_form_has_no_custom_domain_and_gives_the_same(bundle: vitprune.Bundle, model: onnx.ModelProto) -> None:
    flat = variants.inlined(model)
    onnx.checker.check_model(flat, full_check=True)
    assert {entry.domain for entry in flat.opset_import} == {""}
    assert {node.domain for node in flat.graph.node} <= {"", "ai.onnx"}
    assert not flat.functions
    images = bundle.samples()["images"][:5]
    ours, theirs = (_run(one, images) for one in (flat, model))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other)


def _run(model: onnx.ModelProto, images: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"image": images}))


def test_inlined_form_in_a_bundle(bundle: vitprune.Bundle) -> None:
    path = variants.add_inlined(bundle)
    again = vitprune.open_bundle(bundle.path)
    assert variants.INLINED in again.manifest.files
    assert not onnx.load(str(path)).functions


def test_broken_promises_are_named(model: onnx.ModelProto) -> None:
    worse = onnx.ModelProto()
    worse.CopyFrom(model)
    worse.ir_version = 11
    worse.opset_import[0].version = 23
    node = variants.token_samples(worse)[0]
    kept = [attribute for attribute in node.attribute if attribute.name != "plugin_namespace"]
    del node.attribute[:]
    node.attribute.extend(kept)
    said = " ".join(variants.broken_promises(worse))
    assert "opset 23" in said
    assert "IR version 11" in said
    assert node.name in said


def test_model_without_the_operator_stays_as_it_is(model: onnx.ModelProto) -> None:
    plain = variants.inlined(model).SerializeToString()
    assert variants.for_tensorrt(plain, Version.parse("10.3"), plugin=True) == (plain, "plain")


def test_export_command_writes_the_inlined_form(bundle: vitprune.Bundle, tmp_path: Path) -> None:
    from vitprune.cli import run as cli

    out = tmp_path / "out"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("prune: {method: ats, stages: [1], num_samples: 20}\nvalidate: {samples: 8}\n")
    arguments = ["--set", "model.args={embed_dim: 64, depth: 2, num_heads: 4, img_size: 32, patch_size: 8, num_classes: 5}"]
    code = cli(
        ["export", "vit_tiny_patch16_224", "-r", str(recipe), "-o", str(out), "--no-pretrained", "--inline", "-q", *arguments]
    )
    assert code == 0
    assert not onnx.load(str(out / variants.INLINED)).functions
