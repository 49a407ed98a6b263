"""Calibration from a recipe or a bundle to a new recipe file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune import pipelines
from vitprune.bundle import open_bundle, write_atomic
from vitprune.errors import LoadError, RecipeError
from vitprune.models import images as image_data
from vitprune.models.loading import load, require_torch
from vitprune.recipe import Recipe


def run(
    source: str, data: Path, output: Path, *, macs: float | None, tokens: float | None, quantile: float | None, samples: int,
    weights: str | None, pretrained: bool, overrides: list[str] | None, force: bool, report: Callable[[str], None],
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
    require_torch("calibrate")
    from vitprune.calibration.calibrating import check_goal

    check_goal(macs, tokens, quantile)
    if output.exists() and not force:
        raise RecipeError(
            106, f"output '{output}' exists", cause="recipes are not overwritten", next_step="choose another -o, or --force"
        )
    recipe, module, preprocessing = _opened(source, weights, pretrained, overrides)
    inputs = pictures(data, preprocessing, samples)
    if pipelines.of(recipe) is not None:
        changes, graph, facts = _cascade(module, recipe, inputs, preprocessing, macs)
    else:
        changes, graph, facts = _tokens(module, recipe, inputs, macs, tokens, quantile, report)
    plain = recipe.to_dict()
    plain["prune"] |= changes
    plain["graph"] |= graph
    if weights:
        plain["model"]["weights"] = weights
    head = f"# Calibrated with vitprune calibrate on {len(inputs)} images ({inputs.origin}): {facts['macs_share']:.4f} of the dense MACs.\n"
    try:
        write_atomic(output, (head + Recipe.load(plain).to_yaml()).encode())
    except OSError as error:
        raise RecipeError(
            107, f"cannot write '{output}'", cause=error.strerror or str(error), next_step="choose another -o"
        ) from error
    return {"method": recipe.prune.method, "images": len(inputs), **changes, **facts}


def pictures(data: Path, preprocessing: dict[str, Any], samples: int) -> image_data.Images:
    """Calibration images as in validation, from all that training reads; an .npz may lack labels."""
    if data.is_file():
        return image_data.load(data, preprocessing, samples)
    from vitprune.training.feeding import BadImages, Feed
    from vitprune.training.sources import open_split

    found = open_split(data, "train", np.iinfo(np.int64).max)
    assert found is not None
    some = found.first(samples)
    parts = [np.arange(start, min(start + 64, len(some))) for start in range(0, len(some), 64)]
    batches = list(Feed(some, preprocessing, None, 0).batches(parts, 0, 0))
    for batch in batches:
        BadImages(fatal=True).book(batch.bad)
    pixels: NDArray[np.float32] = np.concatenate([batch.images.numpy() for batch in batches])
    return image_data.Images(pixels, some.labels, found.origin)


def _opened(
    source: str, weights: str | None, pretrained: bool, overrides: list[str] | None
) -> tuple[Recipe, Any, dict[str, Any]]:
    folder = Path(source)
    if (folder / "manifest.json").is_file():
        from vitprune.backends.torch import dense_module
        from vitprune.cascade.members import again

        bundle = open_bundle(folder)
        recipe = Recipe.load(bundle.recipe.to_dict(), overrides)
        cascade = pipelines.of(recipe) is not None
        module = again(bundle.manifest.model["source"], recipe, weights) if cascade else dense_module(bundle, weights)
        return recipe, module, bundle.manifest.preprocessing
    if folder.is_dir():
        raise LoadError(
            600, f"'{source}' is not a bundle", cause="it has no manifest.json", next_step="give a recipe or a bundle"
        )
    recipe = Recipe.load(source, overrides)
    if pipelines.of(recipe) is not None:
        from vitprune.cascade import members

        made = members.load(None, recipe, pretrained=pretrained, seed=0, weights=weights)
    else:
        made = load(recipe.model, pretrained=pretrained, weights=weights)
    return recipe, made.module, made.preprocessing


def _tokens(
    module: Any, recipe: Recipe, inputs: image_data.Images, macs: float | None, tokens: float | None, quantile: float | None,
    report: Callable[[str], None],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:  # fmt: skip
    from vitprune.calibration.bench import Bench
    from vitprune.calibration.calibrating import calibrate

    found = calibrate(Bench(module, recipe, inputs.pixels), macs=macs, tokens=tokens, quantile=quantile, report=report)
    facts: dict[str, Any] = {
        "macs_share": round(found.measured.macs, 5), "mean_tokens": round(found.measured.tokens, 3),
        "tokens_per_site": [round(float(value), 2) for value in found.measured.counts.mean(axis=0)],
    }  # fmt: skip
    return found.prune, found.graph, facts | ({} if found.overflow is None else {"overflow_rate": found.overflow})


def _cascade(
    module: Any, recipe: Recipe, inputs: image_data.Images, preprocessing: dict[str, Any], macs: float | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Exit thresholds of a cascade: the best accuracy within the budget, by labels or else by agreement with the last exit."""
    from vitprune.cascade.exporting import geometry_of
    from vitprune.cascade.host import all_exits, confidence, torch_members
    from vitprune.cascade.thresholds import solve
    from vitprune.methods.cost import dense_blocks, model_macs
    from vitprune.methods.dvt import exit_costs

    if macs is None:
        raise RecipeError(170, "a cascade is calibrated for MACs", cause="it drops no tokens", next_step="--budget-macs 0.65")
    params: Any = recipe.prune
    geometry = geometry_of(module.shape, params.grids[-1])
    dense = model_macs(geometry, dense_blocks(geometry))
    members = torch_members(module)
    pieces = [all_exits(members, inputs.pixels[start : start + 64]) for start in range(0, len(inputs), 64)]
    logits = [np.concatenate([piece[number] for piece in pieces]) for number in range(len(members))]
    answers = np.stack([value.argmax(1) for value in logits])
    correct = answers == (answers[-1] if inputs.labels is None else inputs.labels)
    costs = [cost / dense for cost in exit_costs(params, geometry, preprocessing["input_size"])]
    best = solve(np.stack([confidence(value) for value in logits[:-1]]), correct, costs, budget=macs)
    facts = {"macs_share": round(best.mean_cost, 5), "exit_shares": best.fractions, "accuracy_on_these": round(best.accuracy, 3)}
    return {"thresholds": best.thresholds}, {}, facts
