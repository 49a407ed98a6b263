from __future__ import annotations

import pytest

from helpers import RECIPES, ats
from vitprune.errors import RecipeError
from vitprune.methods.base import Geometry
from vitprune.recipe import Recipe
from vitprune.support.resources import shipped_recipes, shipped_targets

DEIT_S = Geometry(depth=12, patches=196, prefix=1, width=384, heads=6, mlp_hidden=1536, embed_macs=196 * 768 * 384)


def code(error: pytest.ExceptionInfo[RecipeError]) -> str:
    return error.value.code


def test_every_shipped_recipe_and_target_loads():
    from vitprune import targets

    assert {"ats_deit_small", "fashion_mnist/ats"} <= set(shipped_recipes())
    for name, path in shipped_recipes().items():
        assert Recipe.load(name).digest() == Recipe.load(path).digest()
    for name in shipped_targets():
        assert targets.load(name).name == name


def test_resolved_recipe_reads_back_the_same():
    recipe = Recipe.load("ats_deit_small", ["prune.num_samples=64", "validate.gates.top1_drop=1.5"])
    assert Recipe.load(recipe.to_dict()) == recipe
    assert recipe.prune.num_samples == 64  # type: ignore[attr-defined]
    assert recipe.validation.gates.top1_drop == 1.5


@pytest.mark.parametrize(
    ("change", "expected", "words"),
    [
        ("prune.num_sample=5", "VP102", "did you mean 'num_samples'"),
        ("grap.opset=18", "VP102", "did you mean 'graph'"),
        ("validate.gates.logit_max_abs=1", "VP102", "did you mean 'logits_max_abs'"),
        ("prune.num_samples=0", "VP102", "greater than 0"),
        ("prune.num_samples=[5,-1]", "VP102", "greater than 0"),
        ("prune.stages=[5,3]", "VP102", "ascend"),
        ("prune.stages=[-1]", "VP102", "counted from 0"),
        ("prune.method=atss", "VP104", "did you mean 'ats'"),
        ("graph.batch=8:4:1", "VP102", "ascend"),
        ("graph.opset=21", "VP102", "20"),
        ("nonsense", "VP105", ""),
    ],
)
def test_wrong_keys_and_values_are_named(change, expected, words):
    with pytest.raises(RecipeError) as error:
        Recipe.load("ats_deit_small", [change])
    assert code(error) == expected
    assert words in error.value.cause
    assert error.value.next_step


def test_missing_file_suggests_a_shipped_recipe(tmp_path):
    with pytest.raises(RecipeError) as error:
        Recipe.load("ats_deit_smal")
    assert code(error) == "VP100"
    assert "ats_deit_small" in error.value.cause
    broken = tmp_path / "r.yaml"
    broken.write_text("prune: [")
    with pytest.raises(RecipeError) as error:
        Recipe.load(broken)
    assert code(error) == "VP101"


def test_extends_one_level(tmp_path):
    child = tmp_path / "child.yaml"
    child.write_text(f"extends: {RECIPES / 'ats_deit_small.yaml'}\nprune: {{num_samples: 32}}\n")
    assert Recipe.load(child).prune.num_samples == 32  # type: ignore[attr-defined]
    grandchild = tmp_path / "grand.yaml"
    grandchild.write_text("extends: child.yaml\n")
    with pytest.raises(RecipeError, match="VP102"):
        Recipe.load(grandchild)


def test_stage_beyond_the_depth_and_wrong_lengths():
    from vitprune import methods

    method = methods.get("ats")
    for prune, expected in ((ats(stages=[3, 12]), "VP110"), (ats(stages=[3, 4], num_samples=[5]), "VP111")):
        with pytest.raises(RecipeError) as error:
            method.sites(Recipe.load(prune).prune, DEIT_S)
        assert code(error) == expected
    with pytest.raises(RecipeError, match="VP112"):
        method.sites(Recipe.load(ats(stages=[3], num_samples=None, capacity=9)).prune, DEIT_S)


def test_static_bounds_shrink_along_the_sites():
    from vitprune import methods

    sites = methods.get("ats").sites(
        Recipe.load(ats(stages=[3, 4, 5], num_samples=[150, 300, 100], capacity=[None, 120, None])).prune, DEIT_S
    )
    assert [(site.patches, site.limit) for site in sites] == [(196, 150), (150, 120), (120, 100)]
