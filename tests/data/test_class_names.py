"""The names of classes go from the training data through recipe and bundle to the images that a bundle is judged on."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from training_support import class_folders, recipe

import vitprune
from vitprune.errors import LoadError, RecipeError
from vitprune.pipelines import validate
from vitprune.recipe import Recipe
from vitprune.training.finetuning import RECIPE, finetune
from vitprune.vit.loading import load


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("names")
    made = recipe("topk", {"augment": {"kind": "none", "mixup": 0, "cutmix": 0}}).with_("model.crop_pct", 1.0)
    finetune(None, made, class_folders(folder / "data"), folder / "run", pretrained=False)
    return folder


def test_from_training_to_validation(trained, tmp_path):
    made = Recipe.load(trained / "run" / RECIPE)
    assert made.model.classes == ["class0", "class1", "class2"]
    bundle = vitprune.export(None, made, tmp_path / "out", data=trained / "data")
    assert bundle.manifest.preprocessing["classes"] == made.model.classes
    one, weights = tmp_path / "val", str(trained / "run" / "model.safetensors")
    one.mkdir()
    (one / "class2").symlink_to(trained / "data" / "train" / "class2")
    dense = load(made.model).module
    found = validate(bundle, data=one, weights=weights)
    labels = np.full(4, 2)
    wanted = 100 * float((dense(_pixels(trained / "data" / "train" / "class2")).argmax(1).numpy() == labels).mean())
    assert found.comparison.accuracy["dense"] == pytest.approx(wanted)
    assert found.comparison.images == 4
    (one / "class7").symlink_to(trained / "data" / "train" / "class0")
    with pytest.raises(LoadError, match="VP627"):
        validate(bundle, data=one, weights=weights)
    with pytest.raises(LoadError, match="VP622"):  # there is a training split only
        validate(bundle, data=trained / "data", weights=weights)


def _pixels(folder):
    import torch
    from PIL import Image

    pictures = np.stack([np.asarray(Image.open(file)) for file in sorted(folder.iterdir())])
    return torch.from_numpy(((pictures[:, None] / 255 - 0.5) / 0.5).astype(np.float32))


def test_a_bundle_learns_names_from_all_class_folders(trained, tmp_path):
    plain = recipe("topk")
    bundle = vitprune.export(None, plain, tmp_path / "out", pretrained=False, data=trained / "data")
    assert bundle.manifest.preprocessing["classes"] == ["class0", "class1", "class2"]
    assert "classes" not in bundle.recipe.to_dict()["model"]


def test_more_names_than_classes_are_refused():
    section = recipe("topk").model
    with pytest.raises(RecipeError, match="VP128"):
        load(section.model_copy(update={"classes": list("abcd")}), pretrained=False)


def test_names_of_imagenet_folders_come_from_timm():
    import timm

    from vitprune.data.preprocessing import imagenet_names

    model = timm.create_model("vit_tiny_patch16_224", embed_dim=24, depth=1, num_heads=2)
    names = imagenet_names(model)
    assert (len(names), names[0], names[-1]) == (1000, "n01440764", "n15075141")
    assert imagenet_names(timm.create_model("vit_tiny_patch16_224", embed_dim=24, depth=1, num_heads=2, num_classes=10)) == []
