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
    rows = [
        [name, recipe.model.name or "-", recipe.prune.method, _ranges(recipe.prune.stages)] for name, recipe in loaded.items()
    ]
    console.table("recipes", ["recipe", "model", "method", "stages"], rows)
    for name, found in wrong[1:]:
        text = f"{name}: {found.message}: {found.cause}"
        console.info(f"[bold red]error {found.code}[/bold red] {console.plain(text)}")
    if wrong:
        raise wrong[0][1]
    console.result(f"{len(loaded)} {'recipe' if len(loaded) == 1 else 'recipes'}, all can be read")
    console.document(
        "recipes", {"status": "ok", "exit_code": 0, "recipes": {name: recipe.to_dict() for name, recipe in loaded.items()}}
    )


def _ranges(blocks: list[int] | None) -> str:
    """Blocks as text: 3-11 for a row of them, "all" where the method works in every block, "none" for no sites."""
    if not blocks:
        return "all" if blocks is None else "none"
    if len(blocks) > 2 and blocks == list(range(blocks[0], blocks[-1] + 1)):
        return f"{blocks[0]}-{blocks[-1]}"
    return ", ".join(map(str, blocks))
