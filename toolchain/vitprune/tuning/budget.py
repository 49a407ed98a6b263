"""What a search may spend: a share of the dense model's MACs, or of its latency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune.calibration.bench import Bench
from vitprune.errors import RecipeError
from vitprune.recipe import Recipe

CAPACITY = 0.99  # quantile of the kept counts that a padded capacity holds


@dataclass(frozen=True)
class Budget:
    """Exactly one of the two, a share of the dense model's above 0 and at most 1."""

    macs: float | None = None
    latency: float | None = None

    @property
    def share(self) -> float:
        """The one that is given."""
        given = self.macs if self.macs is not None else self.latency
        assert given is not None
        return given

    @property
    def what(self) -> str:
        """Its unit, for people."""
        return "dense MACs" if self.macs is not None else "dense latency"


def budget_of(macs: float | None, latency: float | None) -> Budget:
    """Check what was asked for.

    Raises:
        RecipeError: VP170.
    """
    if (macs is None) == (latency is None):
        both = macs is not None
        raise RecipeError(
            170, "there are two budgets" if both else "there is no budget",
            cause="--budget-macs and --budget-latency exclude each other" if both else "a search needs something to meet",
            next_step="--budget-macs 0.5, or --budget-latency 0.8",
        )  # fmt: skip
    found = Budget(macs, latency)
    if not 0 < found.share <= 1:
        option = "--budget-macs" if macs is not None else "--budget-latency"
        raise RecipeError(170, f"{option} {found.share:g}", cause=f"it is a share of the {found.what}, above 0 and at most 1")
    return found


def macs_share(bench: Bench, prune: dict[str, Any], counts: NDArray[np.int64]) -> float:
    """Share of the dense MACs for kept counts int64 [images,sites]; see `held`."""
    recipe = bench.with_prune(prune)
    sites = bench.method.sites(recipe.prune, bench.geometry)
    return bench.cost(sites, held(recipe, [site.limit for site in sites], counts))


def held(recipe: Recipe, limits: list[int], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Patches that every site is charged for: the mean; in padded shapes its capacity, or what one would have to hold.

    Args:
        recipe: what runs. limits: of its sites. counts: kept patches int64 [images,sites].
    """
    if recipe.graph.shapes != "padded":
        return counts.mean(axis=0)
    if getattr(recipe.prune, "capacity", None) is not None:
        return np.asarray(limits, np.float64)
    return np.ceil(np.quantile(counts, CAPACITY, axis=0))


def with_capacity(bench: Bench, prune: dict[str, Any], counts: NDArray[np.int64]) -> dict[str, Any]:
    """In padded shapes the keys with capacities, where the method's counts differ between images."""
    recipe = bench.with_prune(prune)
    fixed = "capacity" not in type(recipe.prune).model_fields or (counts == counts[:1]).all()
    if recipe.graph.shapes != "padded" or fixed:
        return prune
    return prune | {"capacity": [max(1, int(value)) for value in np.ceil(np.quantile(counts, CAPACITY, axis=0))]}
