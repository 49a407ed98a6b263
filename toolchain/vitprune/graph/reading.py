"""A dense graph as recipes ask for it: taken in and taken apart once, however often it is rewritten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx

from vitprune.errors import RecipeError
from vitprune.graph import families
from vitprune.graph.anatomy.find import Anatomy
from vitprune.graph.families.base import Family
from vitprune.graph.intake import Intake, take_in
from vitprune.recipe import Recipe
from vitprune.support.onnx_weights import Spill


@dataclass(frozen=True)
class Reading:
    """What one recipe's rewriting begins with.

    Attributes:
        model: prepared; it is not to be changed. recipe: with what the graph itself decides. notes: for the report.
        family, anatomy: of the model.
    """

    model: onnx.ModelProto
    recipe: Recipe
    notes: dict[str, Any]
    family: Family
    anatomy: Anatomy


class Source:
    """A dense graph that several recipes, or one recipe several times, ask for.

    Args:
        model: the graph; it must not be changed afterwards. spill: where new weights of what is made of it go, None = into the models.
    """

    def __init__(self, model: onnx.ModelProto, spill: Spill | None = None) -> None:
        self.model, self.spill = model, spill
        self._taken: dict[tuple[str, bool], Intake] = {}
        self._anatomies: dict[tuple[str, bool], tuple[Family, Anatomy]] = {}

    def taken(self, recipe: Recipe) -> Intake:
        """The prepared model; errors as `intake.take_in`."""
        key = _key(recipe)
        if key not in self._taken:
            self._taken[key] = take_in(self.model, recipe)
        found = self._taken[key]
        return Intake(found.model, recipe.model_copy(update={"graph": found.recipe.graph}), found.notes)

    def family(self, recipe: Recipe) -> Family:
        """The family that the prepared model belongs to."""
        return families.of(self.taken(recipe).model)

    def read(self, recipe: Recipe) -> Reading:
        """The prepared model and its anatomy.

        Raises:
            ExportError: VP32x, VP33x when the graph is not understood. RecipeError: VP108 another batch than the graph's, VP119 features
                of a family that has none.
        """
        taken, key = self.taken(recipe), _key(recipe)
        if key not in self._anatomies:
            family = families.of(taken.model)
            self._anatomies[key] = family, _anatomy(taken.model, family, recipe)
        return Reading(taken.model, taken.recipe, taken.notes, *self._anatomies[key])


def source_of(model: onnx.ModelProto | Source) -> Source:
    """A model that is read for this one time, or a source as it is."""
    return model if isinstance(model, Source) else Source(model)


def _key(recipe: Recipe) -> tuple[str, bool]:
    """All of a recipe that taking in and taking apart depend on."""
    return recipe.graph.model_dump_json(), recipe.output.features


def _anatomy(model: onnx.ModelProto, family: Family, recipe: Recipe) -> Anatomy:
    """The anatomy of a graph, with or without the head.

    Raises:
        RecipeError: VP119 features of a family that has none.
    """
    if not recipe.output.features:
        return family.find(model)
    if family.find_dense is None:
        raise RecipeError(
            119,
            f"features are not available for {family.name}",
            cause=f"where tokens stand is defined for plain ViTs, not for {family.blocks}",
            next_step="--set output.kind=logits",
        )
    return family.find_dense(model)
