"""vitprune recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitprune import console
from vitprune.errors import VitpruneError

EXAMPLES = (
    "recipes",
    "recipes recipe.yaml other.yaml",
)


def command(
    files: Annotated[list[Path] | None, typer.Argument(help="Recipes to check; without any, the shipped ones.")] = None,
) -> None:
    """List the shipped recipes, or check recipe files and exit 2 where one cannot be used."""
    from vitprune.recipe import Recipe
    from vitprune.support.resources import shipped_recipes

    loaded, wrong = {}, []
    for name, path in {str(file): file for file in files}.items() if files else shipped_recipes().items():
        try:
            loaded[name] = Recipe.load(path)
        except VitpruneError as error:
            if not files:
                raise
            wrong.append((name, error))
    rows = [[name, recipe.model.name or "-", recipe.prune.method, str(recipe.prune.stages)] for name, recipe in loaded.items()]
    console.table("recipes", ["recipe", "model", "method", "stages"], rows)
    for name, found in wrong[1:]:
        text = f"{name}: {found.message}: {found.cause}"
        console.info(f"[bold red]error {found.code}[/bold red] {console.plain(text)}")
    if wrong:
        raise wrong[0][1]
    console.document("recipes", {"recipes": {name: recipe.to_dict() for name, recipe in loaded.items()}})
