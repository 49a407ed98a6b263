"""Calibration from a recipe or a bundle to a new recipe file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitprune import methods, pipelines
from vitprune.bundle import write_atomic
from vitprune.bundle_parts.output import require_new_file
from vitprune.data import images as image_data
from vitprune.errors import RecipeError
from vitprune.methods.pipeline import Goal
from vitprune.pipelines.opening import opened
from vitprune.recipe import Recipe
from vitprune.vit.loading import require_torch


def run(
    source: str, data: Path, output: Path, *, macs: float | None, tokens: float | None, quantile: float | None, samples: int,
    weights: str | None, pretrained: bool, overrides: list[str] | None, force: bool, report: Callable[[str], None],
    schedule: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Calibrate and write.

    Args:
        source: bundle folder, recipe file or shipped recipe. data: images; labels are not needed, except for a cascade's accuracy.
        output: YAML file; an existing one is replaced only with `force`. The others as for `calibrating.calibrate`.

    Returns:
        What was found, JSON-ready.

    Raises:
        RecipeError: VP106, VP107 the output, VP17x goals; VP1xx the recipe. LoadError: VP6xx bundle and data. ExportError: VP30x.
    """
    require_new_file(output, force)
    require_torch("calibrate")
    from vitprune.calibration.calibrating import check_goal

    check_goal(macs, tokens, quantile)
    found_there = opened(source, weights, pretrained, overrides)
    recipe, module, preprocessing = found_there.recipe, found_there.module, found_there.preprocessing
    cascade = methods.get(recipe.prune.method).pipeline is not None  # its exits are judged by labels
    classes = int(module.shape.classes) if cascade else None
    inputs = image_data.load(data, preprocessing, samples, classes=classes, splits=("train",))
    goal = Goal(macs, tokens, quantile, schedule)
    found = pipelines.of(recipe).calibrate(module, recipe, inputs, preprocessing, goal, report)
    plain = recipe.to_dict()
    plain["prune"] |= found.prune
    plain["graph"] |= found.graph
    head = f"# Calibrated with vitprune calibrate on {len(inputs)} images ({inputs.origin}): {found.facts['macs_share']:.4f} of the dense MACs.\n"
    try:
        write_atomic(output, (head + Recipe.load(plain).to_yaml()).encode())
    except OSError as error:
        raise RecipeError(
            107, f"cannot write '{output}'", cause=error.strerror or str(error), next_step="choose another -o"
        ) from error
    return {"method": recipe.prune.method, "images": len(inputs), **found.prune, **found.facts}
