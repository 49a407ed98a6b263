"""The model that a search is for: a recipe, a bundle or a timm name; and recipes given beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitprune import pipelines
from vitprune.bundle import open_bundle
from vitprune.data.preprocessing import of_bundle
from vitprune.errors import LoadError, RecipeError
from vitprune.methods.base import Geometry
from vitprune.recipe import Recipe
from vitprune.vit.dense import geometry
from vitprune.vit.fitting import unwrapped
from vitprune.vit.pruned import check_supported

PLAIN = "topk"  # any method without required keys: of a timm name only the model counts


def opened(source: str, weights: str | None, pretrained: bool, overrides: list[str] | None) -> tuple[Recipe, Any, dict[str, Any]]:
    """The recipe whose model, graph and gates hold for all trials, its dense module and preprocessing.

    Raises:
        LoadError: VP6xx a bundle. RecipeError: VP10x a recipe. ExportError: VP30x the model.
    """
    folder = Path(source)
    if (folder / "manifest.json").is_file():
        bundle = open_bundle(folder)
        recipe = Recipe.load(bundle.recipe.to_dict(), overrides)
        recipe.require_logits("tune")
        return recipe, pipelines.of(recipe).load_again(bundle, recipe, weights), of_bundle(bundle)
    if folder.is_dir():
        raise LoadError(
            600,
            f"'{source}' is not a bundle",
            cause="it has no manifest.json",
            next_step="give a timm model, a recipe or a bundle",
        )
    named = not folder.suffix and "/" not in source and _is_timm(source)
    recipe = Recipe.load({"model": {"name": source}, "prune": {"method": PLAIN}} if named else source, overrides)
    if weights is not None:
        recipe = recipe.with_("model.weights", weights)
    made = single(recipe, pretrained)
    return recipe, unwrapped(made.module), made.preprocessing


def single(recipe: Recipe, pretrained: bool) -> Any:
    """The dense model of a recipe, by the pipeline of single models: what the recipe prunes with does not matter."""
    recipe.require_logits("tune")
    from vitprune.pipelines.single import SingleModelPipeline

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


def _is_timm(name: str) -> bool:
    import timm

    return bool(timm.is_model(name.split(".")[0]))
