"""Methods whose bundles are not one pruned model bring their own pipeline: a package named by `Method.pipeline`.

A pipeline package has these functions, with the arguments of their generic namesakes:

    export     as vitprune.export                    rewrite   as vitprune.rewrite (may refuse)
    reference  as vitprune.reference                 session   as vitprune.backends.session
    validate   as vitprune.validation.validate

The manifest's io["models"] lists the model files of such a bundle with their inputs and outputs; engines are built from each.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitprune.recipe import Recipe


def of(recipe: Recipe) -> Any:
    """The pipeline package of a recipe's method, or None for the generic one."""
    from vitprune import methods  # not above: device packages import the backends without pydantic

    name = methods.get(recipe.prune.method).pipeline
    return importlib.import_module(f"vitprune.{name}") if name else None
