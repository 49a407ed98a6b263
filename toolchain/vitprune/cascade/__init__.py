"""Pipeline of methods that run several models per image and answer at the first confident one (DVT, methods.md §4).

A bundle holds exit1.onnx, exit2.onnx and exit3.onnx, with the reuse tensors z and r as explicit inputs and outputs, and the host
carries out the exit rule. See `vitprune.pipelines` for the functions of a pipeline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitprune.errors import RecipeError

if TYPE_CHECKING:
    from pathlib import Path

    from vitprune.bundle import Bundle
    from vitprune.recipe import Recipe
    from vitprune.validation.validate import Verdict


def export(module_or_name: Any, recipe: Recipe, output: Path, **options: Any) -> Bundle:
    """See `vitprune.cascade.exporting.export`."""
    from vitprune.cascade import exporting

    return exporting.export(module_or_name, recipe, output, **options)


def rewrite(path: Path, recipe: Recipe, output: Path) -> Bundle:
    """Refused: a cascade is three models trained together, not one dense graph.

    Raises:
        RecipeError: VP153.
    """
    raise RecipeError(
        153,
        f"'{path.name}' cannot be turned into a cascade",
        cause=f"{recipe.prune.method} needs three models trained together, with the weights of their reuse",
        next_step="vitprune export MODEL -r RECIPE -o BUNDLE --weights FILE",
    )


def reference(module: Any, recipe: Recipe) -> Any:
    """The PyTorch reference with early exit of a `vitprune.reference.reuse.Cascade`."""
    from vitprune.cascade.members import require_cascade
    from vitprune.reference.reuse import EarlyExit

    return EarlyExit(require_cascade(module), recipe.prune).eval()


def session(bundle: Bundle, backend: str) -> Any:
    """A session with `run(x) -> Result` that runs members and exit rule on a backend."""
    from vitprune.cascade.host import open_session

    return open_session(bundle, backend)


def validate(bundle: Bundle, **options: Any) -> Verdict:
    """See `vitprune.cascade.validating.validate`."""
    from vitprune.cascade import validating

    return validating.validate(bundle, **options)
