"""What a calibration, a search and a profile begin with: a bundle, a recipe, or the name of a timm model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprune import pipelines
from vitprune.bundle import open_bundle
from vitprune.data.preprocessing import of_bundle
from vitprune.errors import LoadError
from vitprune.pipelines.single import SingleModelPipeline
from vitprune.recipe import Recipe
from vitprune.vit.fitting import unwrapped

PLAIN = "topk"  # any method without required keys: of a timm name only the model counts


@dataclass(frozen=True)
class Opened:
    """A recipe, the dense model it is about (of a cascade all of them) and how its images are made."""

    recipe: Recipe
    module: Any
    preprocessing: dict[str, Any]


def opened(
    source: str, weights: str | None, pretrained: bool, overrides: list[str] | None, *, only_model: bool = False,
    check: Callable[[Recipe], None] = lambda recipe: None,
) -> Opened:  # fmt: skip
    """Open a source; the recipe then names the weights that were loaded.

    Args:
        source: bundle folder, recipe file or shipped recipe. weights: a checkpoint, which wins over the recipe's; of a bundle the one
            that it was exported from. pretrained, overrides: as for `export`. only_model: what the recipe prunes with does not matter; a timm name will do as well.
        check: called with the recipe before anything is loaded; raises where it will not do.

    Raises:
        LoadError: VP6xx a bundle, VP613 weights that are not its own. RecipeError: VP10x a recipe. ExportError: VP30x the model.
    """
    folder = Path(source)
    if (folder / "manifest.json").is_file():
        bundle = open_bundle(folder)
        _require_place_for(weights, bundle.manifest.model["source"])
        recipe = _with(Recipe.load(bundle.recipe.to_dict(), overrides), weights)
        check(recipe)
        return Opened(recipe, pipelines.of(recipe).load_again(bundle, recipe, weights), of_bundle(bundle))
    if folder.is_dir():
        raise LoadError(
            600, f"'{source}' is not a bundle", cause="it has no manifest.json",
            next_step=f"give {'a timm model, ' if only_model else ''}a recipe or a bundle",
        )  # fmt: skip
    named = only_model and not folder.suffix and "/" not in source and _is_timm(source)
    recipe = _with(Recipe.load({"model": {"name": source}, "prune": {"method": PLAIN}} if named else source, overrides), weights)
    check(recipe)
    pipeline = SingleModelPipeline() if only_model else pipelines.of(recipe)
    made = pipeline.load(None, recipe, pretrained=pretrained, seed=0, weights=weights)
    return Opened(recipe, unwrapped(made.module), made.preprocessing)


def _require_place_for(weights: str | None, source: dict[str, Any]) -> None:
    """A bundle's model is made again as it was: weights of another origin would be passed over in silence."""
    if weights is not None and source.get("kind") == "timm" and source.get("weights") != "file":
        raise LoadError(
            613, "the bundle was not exported from a weights file", cause=f"its weights are {source.get('weights')}",
            next_step="leave out --weights, or give a recipe in place of the bundle",
        )  # fmt: skip


def _with(recipe: Recipe, weights: str | None) -> Recipe:
    return recipe if weights is None else recipe.with_("model.weights", weights)


def _is_timm(name: str) -> bool:
    import timm

    return bool(timm.is_model(name.split(".")[0]))
