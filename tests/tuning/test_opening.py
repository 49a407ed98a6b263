from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tuning_support import saved

import vitprune
from vitprune.cli import run as cli
from vitprune.errors import LoadError, RecipeError
from vitprune.pipelines.opening import opened
from vitprune.recipe import Recipe
from vitprune.tuning.opening import model_of


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    """A bundle of the same model whose recipe's weights have gone to another place, and that place."""
    folder = tmp_path_factory.mktemp("bundle")
    first, second = folder / "first.safetensors", str(folder / "second.safetensors")
    shutil.copyfile(Path(model[0]).parent / "weights.safetensors", first)
    vitprune.export(None, Recipe.load(str(model[0]), [f'model.weights="{first}"']), folder / "out", pretrained=False)
    first.rename(second)
    return folder / "out", second


@pytest.mark.parametrize("only_model", [False, True])
def test_the_recipe_names_the_weights_that_were_loaded(model, bundle, only_model):
    for source in (str(model[0]), str(bundle[0])):
        found = opened(source, bundle[1], False, ["prune.r=1"], only_model=only_model)
        assert found.recipe.model.weights == bundle[1]
        assert found.recipe.prune.r == 1
        assert all((a == b).all() for a, b in zip(found.module.parameters(), model[2].parameters(), strict=True))
        assert list(found.preprocessing["input_size"]) == [1, 16, 16]


def test_weights_that_a_bundle_would_pass_over_are_refused(model, tmp_path):
    vitprune.export(None, Recipe.load(str(model[0]), ["model.weights=null"]), tmp_path / "out", pretrained=False, seed=3)
    with pytest.raises(LoadError, match="VP613"):
        opened(str(tmp_path / "out"), str(Path(model[0]).parent / "weights.safetensors"), False, None)


def test_a_timm_name_is_a_model_only():
    assert model_of("deit_tiny_patch16_224", None, False, None).module.embed_dim == 192
    with pytest.raises(RecipeError, match="VP100"):
        opened("deit_tiny_patch16_224", None, False, None)


def test_what_is_neither_is_named(tmp_path):
    for only_model in (False, True):
        with pytest.raises(LoadError, match="VP600"):
            opened(str(tmp_path), None, False, None, only_model=only_model)


def test_a_search_on_a_bundle_writes_recipes_that_name_its_weights(model, bundle, tmp_path):
    call = [
        "tune",
        str(bundle[0]),
        "--weights",
        bundle[1],
        "--data",
        str(model[1]),
        "--budget-macs",
        "0.7",
        "-o",
        str(tmp_path / "s"),
    ]
    assert cli([*call, "--trials", "2", "--samples", "32", "--method", "pomt", "--quiet"]) == 0
    assert Recipe.load(tmp_path / "s" / "recipe.yaml").model.weights == bundle[1]
