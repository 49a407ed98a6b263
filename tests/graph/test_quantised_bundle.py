"""int8 from the command line: export with images, validate, sensitivity, exclusions, and what is refused."""

import json
import shutil

import numpy as np
import onnx
import pytest
import yaml
from quantised_support import outlier, rules, settled
from test_precision import dense, model, pixels

from vitprune import cli
from vitprune.bundle import Manifest, seal
from vitprune.errors import BuildError, RecipeError, TargetError
from vitprune.exporting import sensitivity
from vitprune.graph import surgery
from vitprune.recipe import Recipe

MODEL = {
    "name": "vit_tiny_patch16_224", "image_size": 32,
    "args": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5},
    "mean": [0.5], "std": [0.5], "interpolation": "bilinear", "crop_pct": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    images = np.random.default_rng(0).uniform(0, 255, (40, 3, 32, 32)).astype(np.uint8)
    np.savez(folder / "images.npz", images=images)
    np.savez(folder / "few.npz", images=images[:3])
    np.savez(folder / "flat.npz", images=np.full_like(images, 90))
    recipe = {
        "model": MODEL, "prune": {"method": "topk", "stages": [1], "keep_rate": 0.7}, "validate": {"samples": 8},
        "precision": {"mode": "int8", "images": 24},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="module")
def bundle(files):
    assert export(files, "bundle", "images.npz") == 0
    return files / "bundle"


def export(files, name, data=None, *more):
    given = [] if data is None else ["--data", str(files / data)]
    arguments = ["export", "-r", str(files / "recipe.yaml"), "-o", str(files / name), "--no-pretrained", "--quiet"]
    return cli.run([*arguments, *given, *more])


def test_export_validate_and_sensitivity(bundle, files, capsys):
    stored = yaml.safe_load((bundle / "recipe.yaml").read_text())["precision"]
    assert len(stored["ranges"]) == 8
    notes = json.loads((bundle / "reports" / "export.json").read_text())
    assert notes["precision"]["layers"]["int8"] >= 12
    assert notes["check"]["layers_compared"] == 8
    assert cli.run(["validate", str(bundle), "--quiet"]) == 0
    capsys.readouterr()
    plot = files / "plot.svg"
    asked = ["inspect", str(bundle), "--precision-sensitivity", "--data", str(files / "images.npz"), "--samples", "16"]
    assert cli.run([*asked, "--plot", str(plot), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["sensitivity"]
    assert sorted(one["layer"] for one in found["costs"]) == sorted(stored["ranges"])
    assert found["costs"][0]["error"] >= found["costs"][-1]["error"] > 0
    assert plot.read_text().lstrip().startswith("<?xml")
    assert cli.run(["inspect", str(bundle), "--precision-sensitivity", "--quiet"]) == 2
    assert "VP117" in capsys.readouterr().err


def said(capsys):
    """Code, cause and next step of the one JSON document that a refused command printed."""
    document = json.loads(capsys.readouterr().out)
    error = document["error"]
    return document["exit_code"], error["code"], bool(error["cause"]), bool(error["next_step"])


def in_type(bundle, folder, mode):
    """A copy of a bundle whose recipe asks for another type; its graph is not looked at by what refuses it."""
    shutil.copytree(bundle, folder)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["precision"]["mode"] = mode
    changed = Recipe.load(recipe)
    (folder / "recipe.yaml").write_text(changed.to_yaml())
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    seal(folder, manifest.model_copy(update={"recipe_sha256": changed.digest()}))
    return folder


@pytest.mark.parametrize(
    ("target", "more", "code"),
    [("jetson-orin", [], "VP246"), ("rtx", ["--sm", "86"], "VP246"), ("rtx", ["--precision", "int8"], "VP116")],
)
def test_fp8_for_hardware_without_it_is_refused_by_the_command(bundle, target, more, code, tmp_path, capsys):
    made = in_type(bundle, tmp_path / "fp8", "fp8")
    assert cli.run(["build-engine", str(made), "--target", target, *more, "--json"]) == 2
    assert said(capsys) == (2, code, True, True)


def test_a_range_of_zero_is_named_by_the_command(files, tmp_path, capsys):
    """A range of zero in the recipe; one that calibration finds is VP135 (test_quantised.py)."""
    recipe = yaml.safe_load((files / "recipe.yaml").read_text())
    recipe["precision"]["ranges"] = {"blocks.0.attn.qkv": 0.0}
    (tmp_path / "zero.yaml").write_text(yaml.safe_dump(recipe))
    asked = ["export", "-r", str(tmp_path / "zero.yaml"), "-o", str(tmp_path / "b"), "--no-pretrained", "--json"]
    assert cli.run(asked) == 2
    assert said(capsys) == (2, "VP102", True, True)


@pytest.mark.parametrize(("data", "code"), [(None, "VP117"), ("few.npz", "VP136"), ("flat.npz", "VP127")])
def test_images_of_no_use_are_named(files, data, code, capsys):
    assert export(files, "refused", data) == 2
    said = capsys.readouterr().err
    assert code in said
    assert "→" in said or "next" in said.lower() or "--data" in said
    assert not (files / "refused").exists()


@pytest.mark.parametrize(
    ("key", "code"),
    [("precision.mode=int5", "VP102"), ("precision.exclude=['blocks.7.*']", "VP113"), ("precision.exclude=['*']", "VP129")],
)
def test_wrong_keys_are_named(files, key, code, capsys):
    assert export(files, "refused", "images.npz", "--set", key) == 2
    assert code in capsys.readouterr().err


def test_a_quantised_graph_cannot_come_in(files, bundle, capsys):
    again = ["rewrite", str(bundle / "model.onnx"), "-r", str(files / "recipe.yaml"), "-o", str(files / "twice"), "--quiet"]
    assert cli.run([*again, "--data", str(files / "images.npz")]) == 2
    assert "VP339" in capsys.readouterr().err


def test_a_given_graph_needs_no_images_where_the_recipe_has_its_ranges(files, tmp_path):
    """Seen failing: the graph that was read first, in fp32, was held against a quantised reference."""
    onnx.save(dense(), str(tmp_path / "dense.onnx"))
    images = np.random.default_rng(1).uniform(0, 255, (24, 64, 64, 3)).astype(np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    recipe = {
        "model": {"mean": [0.5], "std": [0.5], "interpolation": "bilinear", "crop_pct": 1.0},
        "prune": {"method": "topk", "stages": [1], "keep_rate": 0.7}, "precision": {"mode": "int8", "rest": "fp32", "images": 24},
        "validate": {"samples": 4},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    begin = ["rewrite", str(tmp_path / "dense.onnx"), "--quiet", "-r"]
    assert (
        cli.run([*begin, str(tmp_path / "recipe.yaml"), "-o", str(tmp_path / "first"), "--data", str(tmp_path / "images.npz")])
        == 0
    )
    assert cli.run([*begin, str(tmp_path / "first" / "recipe.yaml"), "-o", str(tmp_path / "again")]) == 0
    first, again = (onnx.load(str(tmp_path / name / "model.onnx")) for name in ("first", "again"))
    assert [node.SerializeToString() for node in first.graph.node] == [node.SerializeToString() for node in again.graph.node]
    assert any(node.op_type == "QuantizeLinear" for node in again.graph.node)


def test_orin_does_not_compute_fp8():
    from vitprune import targets
    from vitprune.engines.requirements import require_precision

    with pytest.raises(TargetError) as caught:
        require_precision(targets.load("jetson-orin"), "fp8")
    assert caught.value.code == "VP246"
    assert caught.value.cause
    assert caught.value.next_step
    require_precision(targets.load("jetson-thor"), "fp8")
    require_precision(targets.load("jetson-orin"), "int8")


def test_the_layer_that_was_made_to_suffer_is_the_dearest():
    """Planted: one layer has an outlier channel and no smoothing. It is found, and leaving it out meets the gate."""
    from quantised_support import calibrated
    from test_precision import torchscript

    spoilt = outlier(2000.0)
    recipe = calibrated(rules("topk", rest="fp32", smooth=False, agreement=0.9), torchscript(spoilt))
    found = sensitivity.measure(spoilt, recipe, pixels(16, 11))
    assert found.costs[0].layer == "blocks.1.mlp.fc1"
    assert found.costs[0].error > 3 * found.costs[1].error
    if found.exclude:
        assert found.exclude[0] == "blocks.1.mlp.fc1"
    left = sensitivity.without(recipe.precision, ["blocks.1.mlp.fc1"])
    assert "blocks.1.mlp.fc1" not in left.ranges
    better = sensitivity.measure(spoilt, recipe.with_("precision", left.brief()), pixels(16, 11))
    assert better.whole.error < 0.5 * found.whole.error


def test_auto_exclude_leaves_out_as_few_as_do(monkeypatch):
    """The search, on made-up figures: the gate holds from three layers on."""
    layers = [f"l{number}" for number in range(16)]
    full = (np.eye(10), [])

    def run(module, recipe, images):
        wrong = 0 if len(recipe.precision.exclude) >= 3 else 5
        return np.roll(np.eye(10), 1, axis=1) * (np.arange(10) < wrong)[:, None] + np.eye(10) * (np.arange(10) >= wrong)[
            :, None
        ], []

    monkeypatch.setattr(sensitivity, "_run", run)
    exclude, agreement = sensitivity._search(None, settled(), np.zeros(1), full, layers, 0.97, lambda text: None)
    assert (exclude, agreement) == (layers[:3], 1.0)


def test_auto_exclude_that_cannot_help_is_named(monkeypatch):
    costs = [sensitivity.Cost("blocks.0.attn.qkv", 0.1, 1, 0)]
    hopeless = sensitivity.Sensitivity("int8", 8, costs, costs[0], ["blocks.0.attn.qkv"], False, 0.5)
    monkeypatch.setattr(sensitivity, "measure", lambda *given: hopeless)
    recipe = settled().with_("precision.auto_exclude", True)
    for images, code in ((None, "VP117"), (lambda count: np.zeros(1), "VP133")):
        with pytest.raises(RecipeError) as caught:
            sensitivity.settle(model(), recipe, images)
        assert caught.value.code == code


@pytest.mark.parametrize("mode", ["int8", "fp8"])
def test_an_rtx_engine_builds_and_its_products_are_counted(mode, tmp_path):
    trt = pytest.importorskip("tensorrt_rtx")
    assert trt
    from vitprune.backends import tensorrt_rtx

    pruned, _, notes = surgery.rewrite(dense(), settled("topk", mode), has_cls=True)
    onnx.save(pruned, tmp_path / "model.onnx")
    request = {
        "model": tmp_path / "model.onnx", "output": tmp_path / "engine", "log": tmp_path / "log", "batch": (1, 2, 4),
        "precision": mode, "rest": "fp16",
    }  # fmt: skip
    facts = tensorrt_rtx.build(request, lambda text: None)
    assert facts["layers_by_precision"] == notes["precision"]["layers"]
    assert facts["quantising_layers"] == {
        "quantize": notes["precision"]["quantize"],
        "dequantize": notes["precision"]["dequantize"],
    }
    for asked, rest in (("fp16", "fp16"), (mode, "fp32")):
        with pytest.raises(BuildError) as caught:
            tensorrt_rtx._require_type(asked, facts["layers_by_precision"], rest)
        assert caught.value.code == "VP512"
