"""vitprune recipes."""

from __future__ import annotations

from vitprune import console


def command() -> None:
    """List the shipped recipes."""
    from vitprune.recipe import Recipe
    from vitprune.support.resources import shipped_recipes

    loaded = {name: Recipe.load(path) for name, path in shipped_recipes().items()}
    rows = [[name, recipe.model.name or "-", recipe.prune.method, str(recipe.prune.stages)] for name, recipe in loaded.items()]
    console.table("recipes", ["recipe", "model", "method", "stages"], rows)
    console.document("recipes", {"recipes": {name: recipe.to_dict() for name, recipe in loaded.items()}})
