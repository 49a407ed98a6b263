"""What an export report says of features."""

from __future__ import annotations

from typing import Any

from vitprune import methods
from vitprune.errors import RecipeError
from vitprune.recipe import Recipe


def features_notes(recipe: Recipe) -> dict[str, Any]:
    """How places of patches without a token of their own are filled, JSON-ready; {} for logits."""
    if not recipe.output.features:
        return {}
    method = methods.get(recipe.prune.method)
    if method.places == "map":
        text = "every patch has the row of the token that stands for it"
        text += "; where a capacity lost that, the row with which it entered the block" if recipe.output.fill else ""
    else:
        text = f"{method.name} drops tokens: in the place of a dropped patch stands the row with which it entered the block in which it left"
    return {"features": {"places": method.places, "fill": recipe.output.fill, "means": text}}


def require_free(recipe: Recipe) -> None:
    """Refuse keys of features that a given graph decides itself.

    Raises:
        RecipeError: VP118.
    """
    if stated := recipe.output.shape_keys():
        raise RecipeError(
            118,
            f"output.{stated[0]} does not go with a given graph",
            cause="which blocks are read, and how, is what stands behind the blocks in the graph",
            next_step=f"leave output.{stated[0]} out; --output-name chooses one of several outputs",
        )
