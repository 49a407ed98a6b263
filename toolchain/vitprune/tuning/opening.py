"""The model that a search is for, and recipes given beside it."""

from __future__ import annotations

from typing import Any

from vitprune.errors import RecipeError
from vitprune.methods.base import Geometry
from vitprune.pipelines.opening import Opened, opened
from vitprune.pipelines.single import SingleModelPipeline
from vitprune.recipe import Recipe
from vitprune.vit.dense import geometry
from vitprune.vit.pruned import check_supported


def model_of(source: str, weights: str | None, pretrained: bool, overrides: list[str] | None) -> Opened:
    """The recipe whose model, graph and gates hold for all trials, its dense module and preprocessing; see `opened`.

    Raises:
        RecipeError: VP118 features are asked for; else as `opened`.
    """
    return opened(source, weights, pretrained, overrides, only_model=True, check=lambda recipe: recipe.require_logits("tune"))


def single(recipe: Recipe, pretrained: bool) -> Any:
    """The dense model of a recipe, by the pipeline of single models: what the recipe prunes with does not matter."""
    recipe.require_logits("tune")
    return SingleModelPipeline().load(None, recipe, pretrained=pretrained, seed=0, weights=None)


def sizes(module: Any) -> Geometry:
    """Geometry of a model that methods can be applied to.

    Raises:
        ExportError: VP310, VP311, VP313.
    """
    from vitprune import methods

    check_supported(module, methods.get("tome"))
    return geometry(module)


def fitting(recipe: Recipe, preprocessing: dict[str, Any], expected: Geometry, pretrained: bool) -> Any:
    """The dense module of a recipe that is searched beside the model.

    Raises:
        RecipeError: VP179 it is another model, or reads images differently.
    """
    made = single(recipe, pretrained)
    other = [key for key in ("input_size", "mean", "std") if made.preprocessing.get(key) != preprocessing.get(key)]
    if geometry(made.module) != expected:
        other.insert(0, "its sizes")
    if other:
        raise RecipeError(
            179, "a recipe does not fit the model that is searched for", cause=f"different: {', '.join(other)}",
            next_step="give recipes for the same model and images",
        )  # fmt: skip
    return made.module
