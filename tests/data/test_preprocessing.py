"""Preprocessing is stated by somebody or unknown, never made up."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from PIL import Image

from helpers import ats
from vitprune import pipelines
from vitprune.data import images
from vitprune.data import preprocessing as stating
from vitprune.data.preprocessing import describe, of_bundle, of_graph, of_hugging_face
from vitprune.errors import LoadError, TargetError
from vitprune.model_section import ModelSection
from vitprune.recipe import Recipe

SHAPE = (3, 64, 64)
VIT = {
    "image_processor_type": "ViTImageProcessor", "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 2,
    "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3], "rescale_factor": 1 / 255, "size": {"height": 64, "width": 64},
}  # fmt: skip


def config(tmp_path, **changes):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({key: value for key, value in (VIT | changes).items() if value is not None}))
    return path


@pytest.fixture(scope="module")
def dense(tmp_path_factory, tiny_dense):
    path = tmp_path_factory.mktemp("dense") / "dense.onnx"
    onnx.save(tiny_dense, str(path))
    return path


def test_nothing_is_made_up(dense, tmp_path):
    made = pipelines.rewrite(dense, Recipe.load(ats(stages=[1], num_samples=30)), tmp_path / "out")
    assert made.manifest.preprocessing == {"input_size": [3, 64, 64], "known": False, "origin": "nobody"}
    assert pipelines.validate(made).passed


def test_a_gate_on_accuracy_needs_known_preprocessing(dense, tmp_path):
    recipe = Recipe.load(ats(stages=[1], num_samples=30), ["validate.gates.top1_drop=5"])
    with pytest.raises(LoadError, match="VP628") as error:
        pipelines.rewrite(dense, recipe, tmp_path / "out")
    assert "mean" in error.value.cause
    assert not (tmp_path / "out").exists()
    made = pipelines.rewrite(dense, recipe.with_("validate.gates.top1_drop", None), tmp_path / "out")
    gated = type(made)(made.path, made.manifest, recipe)
    with pytest.raises(LoadError, match="VP628"):
        pipelines.validate(gated)
    invented = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 0.9}
    earlier = type(made)(made.path, made.manifest.model_copy(update={"preprocessing": invented}), recipe)
    assert not of_bundle(earlier)["known"]
    with pytest.raises(LoadError, match="VP628"):
        pipelines.validate(earlier)


def test_unknown_preprocessing_takes_ready_arrays_only(tmp_path):
    unknown = describe(SHAPE, ModelSection())
    pixels = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    np.savez(tmp_path / "ready.npz", images=pixels)
    np.testing.assert_array_equal(images.load(tmp_path / "ready.npz", unknown, 2, classes=3).pixels, pixels)
    np.savez(tmp_path / "raw.npz", images=np.full((2, *SHAPE), 200, np.uint8))
    np.savez(tmp_path / "float.npz", images=np.full((2, *SHAPE), 200, np.float32))
    (tmp_path / "folder" / "a").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "folder" / "a" / "0.png")
    for name, code in (("raw.npz", "VP628"), ("folder", "VP628"), ("float.npz", "VP621")):
        with pytest.raises(LoadError, match=code):
            images.load(tmp_path / name, unknown, 2, classes=1)
    half = describe((3, 32, 32), ModelSection(mean=[0.5], std=[0.5]))
    assert not half["known"]
    with pytest.raises(LoadError, match="VP628") as error:  # of another size than the model's
        images.load(tmp_path / "raw.npz", half, 2, classes=1)
    assert "interpolation, crop_pct" in error.value.cause
    np.testing.assert_allclose(
        images.load(tmp_path / "raw.npz", describe(SHAPE, ModelSection(mean=[0.5], std=[0.5])), 1, classes=1).pixels, 200 / 127.5 - 1, atol=1e-6
    )  # fmt: skip


def test_who_states_it(monkeypatch, tmp_path):
    whole = {"mean": [0.1], "std": [0.2], "interpolation": "bilinear", "crop_pct": 0.8}
    by_recipe = of_graph(SHAPE, ModelSection(**whole), None)
    assert (by_recipe["mean"], by_recipe["crop_pct"], by_recipe["known"], by_recipe["origin"]) == ([0.1] * 3, 0.8, True, "recipe")
    by_name = of_graph(SHAPE, ModelSection(name="deit_small_patch16_224"), None)
    assert by_name["mean"] == [0.485, 0.456, 0.406]
    assert (by_name["crop_pct"], by_name["known"], by_name["origin"]) == (0.9, True, "timm deit_small_patch16_224")
    by_file = of_graph(SHAPE, ModelSection(name="deit_small_patch16_224"), str(config(tmp_path)))
    assert (by_file["mean"], by_file["origin"]) == ([0.5, 0.4, 0.3], "preprocessor_config.json")
    assert of_graph(SHAPE, ModelSection(std=[0.9]), str(tmp_path))["std"] == [0.9] * 3
    assert describe(SHAPE, ModelSection(), whole | {"crop_mode": "squash"}, "x")["crop_mode"] == "squash"
    with pytest.raises(LoadError, match="VP620"):
        of_graph(SHAPE, ModelSection(), "no_such_model")

    def absent(purpose):
        raise TargetError(201, purpose)

    monkeypatch.setattr(stating.extras, "import_torch", absent)
    assert not stating.of_graph(SHAPE, ModelSection(name="deit_small_patch16_224"), None)["known"]


@pytest.mark.parametrize(
    ("changes", "size", "mode"),
    [
        ({}, 1.0, "squash"),
        ({"size": 64}, 1.0, "squash"),
        ({"size": {"shortest_edge": 80}, "do_center_crop": True, "crop_size": {"height": 64, "width": 64}}, 0.8, "center"),
        ({"size": 80, "do_center_crop": True, "crop_size": 64, "image_processor_type": "CLIPImageProcessor"}, 0.8, "center"),
        ({"do_rescale": False, "image_mean": [127.5], "image_std": [51.0]}, 1.0, "squash"),
        ({"rescale_factor": 2 / 255}, 1.0, "squash"),
    ],
)
def test_a_config_of_hugging_face_prepares_as_described(tmp_path, changes, size, mode):
    made = VIT | changes
    found = of_hugging_face(config(tmp_path, **changes))
    assert (found["crop_pct"], found["crop_mode"], found["interpolation"]) == (pytest.approx(size), mode, "bilinear")
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.uint8))
    if size == 1.0:  # already of that size, so that normalisation alone is left
        factor = made["rescale_factor"] if made["do_rescale"] else 1
        mean, std = np.asarray(made["image_mean"]), np.asarray(made["image_std"])
        expected = (np.asarray(picture) * factor - mean) / std
        ours = images.Preparation(describe(SHAPE, ModelSection(), found, "x"))(picture).numpy()
        np.testing.assert_allclose(ours, expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"do_pad": True}, {"image_std": [0, 0, 0]}, {"image_mean": None}, {"resample": None}, {"size": {"shortest_edge": 64}},
     {"size": 64, "image_processor_type": "StrangeProcessor"}, {"size": {"height": 64, "width": 32}}, {"do_resize": False},
     {"image_mean": [float("nan")]}],
)  # fmt: skip
def test_a_config_that_is_not_understood_is_refused(tmp_path, changes):
    with pytest.raises(LoadError, match="VP621"):
        of_hugging_face(config(tmp_path, **changes))


def test_a_module_that_timm_did_not_create_states_nothing():
    from timm.models.vision_transformer import VisionTransformer

    from vitprune.vit.loading import from_module

    module = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=3)
    assert from_module(module, ModelSection()).preprocessing["known"] is False
    assert from_module(module, ModelSection(mean=[0.5], std=[0.5], crop_pct=1.0, interpolation="bicubic")).preprocessing["known"]
