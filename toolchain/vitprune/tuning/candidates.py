"""What a search tries: every method that needs no training, and the recipes that are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vitprune import methods
from vitprune.calibration.bench import Bench
from vitprune.errors import ExportError, RecipeError
from vitprune.methods.base import Geometry
from vitprune.methods.knob import Dimension, Knob
from vitprune.recipe import Recipe


@dataclass(frozen=True)
class Candidate:
    """A method on a model.

    name: a method's, or the file of a recipe. recipe: with the method's defaults, or as given. load: the dense model, made once.
    given: a recipe of the user's, whose keys are not varied.
    """

    name: str
    recipe: Recipe
    load: Callable[[], Any]
    given: bool = False

    @cached_property
    def module(self) -> Any:
        """The dense model with the candidate's weights."""
        return self.load()

    @property
    def knob(self) -> Knob | None:
        """See `Method.knob`."""
        return methods.get(self.recipe.prune.method).knob

    def dimensions(self, geometry: Geometry) -> list[Dimension]:
        """What is varied besides the knob."""
        return self.knob.dimensions(geometry) if self.knob is not None and not self.given else []

    def with_keys(self, keys: dict[str, Any]) -> Recipe:
        """The recipe with changed method keys."""
        plain = self.recipe.to_dict()
        return Recipe.load(plain | {"prune": plain["prune"] | keys})


@dataclass(frozen=True)
class Start:
    """Something a search begins with: a candidate as it is (`knob` None), or turned to the budget.

    keys: changed method keys. kind: "recipe" as given, or "calibrated".
    """

    candidate: Candidate
    kind: str
    knob: Knob | None = None
    keys: dict[str, Any] = field(default_factory=dict)


def chosen_methods(names: Sequence[str]) -> list[str]:
    """The methods to search; none named = all that need no training.

    Raises:
        RecipeError: VP104 unknown, VP175 not one that can be searched.
    """
    for name in names:
        if why := _unfit(name):
            raise RecipeError(
                175, f"'{name}' cannot be searched", cause=why,
                next_step=f"methods that can: {', '.join(one for one in methods.names() if not _unfit(one))}; or --recipe FILE",
            )  # fmt: skip
    return list(dict.fromkeys(names)) or [name for name in methods.names() if not _unfit(name)]


def _unfit(name: str) -> str:
    method = methods.get(name)
    if method.training_need == "required":
        return "it makes no sense without training; give trained ones as recipes"
    if method.pipeline is not None:
        return "it runs several models per image"
    return "" if method.knob is not None else "it has no setting that moves its cost"


def of_methods(base: Recipe, module: Any, names: Sequence[str], geometry: Geometry) -> list[Candidate]:
    """Candidates of methods on the model; those that the model has no place for (a CLS token, blocks) are left out.

    Raises:
        VitpruneError: nothing is left, why of the last one.
    """
    found, refused = [], None
    plain = base.to_dict()
    plain.pop("train", None)
    for name in names:
        try:
            if methods.get(name).needs_cls and not geometry.has_cls:
                raise methods.needs_a_cls_token(name, "this model has none")
            recipe = Recipe.load(plain | {"prune": {"method": name, **_stages(name, geometry)}})
            recipe = _fitting(recipe, module, geometry)
        except (ExportError, RecipeError) as error:
            refused = error
            continue
        found.append(Candidate(name, recipe, lambda: module))
    if not found and refused is not None:
        raise refused
    return found


def _fitting(recipe: Recipe, module: Any, geometry: Geometry) -> Recipe:
    """The recipe; where defaults were made for a larger model, with the knob at the end where nearly nothing leaves."""
    method, knob = methods.get(recipe.prune.method), methods.get(recipe.prune.method).knob
    try:
        method.sites(recipe.prune, geometry)
        return recipe
    except RecipeError:
        if knob is None:
            raise
    bench = Bench(module, recipe, np.empty((0, 1, 1, 1), np.float32))
    low, high = knob.bounds(bench)
    fitted = bench.with_prune(knob.settings(bench, high if knob.rising else low))
    method.sites(fitted.prune, geometry)
    return fitted


def _stages(name: str, geometry: Geometry) -> dict[str, Any]:
    """A method's default stages where the model has them, else every block but the first."""
    default = methods.get(name).params.model_fields["stages"].get_default(call_default_factory=True)
    if default is None or all(stage < geometry.depth for stage in default):
        return {}
    inside = [stage for stage in default if stage < geometry.depth] or [geometry.depth // 2]
    return {"stages": inside}


def of_recipe(source: str, fits: Callable[[Recipe], Any]) -> Candidate:
    """A recipe of the user's; `fits` makes its dense model and refuses another than the one searched for.

    Raises:
        RecipeError: VP10x the recipe, VP176 a cascade.
    """
    recipe = Recipe.load(source)
    if methods.get(recipe.prune.method).pipeline is not None:
        raise RecipeError(
            176, f"recipe '{source}' cannot be searched", cause=f"{recipe.prune.method} runs several models per image",
            next_step="vitprune thresholds BUNDLE sets its exits for a budget",
        )  # fmt: skip
    return Candidate(Path(source).stem, recipe, lambda: fits(recipe), given=True)


def starts(candidates: Sequence[Candidate]) -> list[Start]:
    """Recipes as they are; then recipes and methods turned to the budget, in the forms that their knobs know."""
    found = [Start(one, "recipe") for one in candidates if one.given]
    for one in candidates:
        knob = one.knob
        forms = [] if knob is None else [({}, knob)] if one.given else knob.beginnings()
        found += [Start(one, "calibrated", form, keys) for keys, form in forms]
    return found
