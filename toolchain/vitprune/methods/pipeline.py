"""What a pipeline does: everything between a recipe and a verdict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vitprune.backends import Result
    from vitprune.bundle import Bundle
    from vitprune.data.images import Images
    from vitprune.recipe import Recipe
    from vitprune.validation.verdict import Verdict
    from vitprune.vit.loading import LoadedModel

Report = Callable[[str], None]


class Session(Protocol):
    """A bundle on a runtime."""

    def run(self, x: NDArray[np.float32]) -> Result:
        """Run images float32 [B,C,H,W]."""


@dataclass(frozen=True)
class Goal:
    """What calibration aims at.

    macs: share of the dense MACs, mean over images. tokens: mean number of patches that a site leaves. quantile: of the kept counts
    that a padded capacity must hold, per site. schedule: how the reduction is spread over the blocks, where the method has a choice.
    """

    macs: float | None = None
    tokens: float | None = None
    quantile: float | None = None
    schedule: str | None = None


@dataclass(frozen=True)
class Calibration:
    """prune, graph: recipe keys to change. facts: what was found, JSON-ready; has "macs_share"."""

    prune: dict[str, Any]
    facts: dict[str, Any]
    graph: dict[str, Any] = field(default_factory=dict)


class Pipeline(ABC):
    """Bundles of one kind: of a single pruned model, or of a cascade of several."""

    @abstractmethod
    def load(self, name: str | None, recipe: Recipe, *, pretrained: bool, seed: int, weights: str | None) -> LoadedModel:
        """The dense model that a recipe (or a name) asks for.

        Raises:
            ExportError: VP30x the model or its weights.
        """

    @abstractmethod
    def load_again(self, bundle: Bundle, recipe: Recipe, weights: str | None) -> Any:
        """The dense module a bundle was exported from.

        Raises:
            LoadError: VP613 when its weights are not at hand or are others.
        """

    @abstractmethod
    def export(
        self, module_or_name: Any, recipe: Recipe, output: Path, *, pretrained: bool, seed: int, weights: str | None,
        data: str | Path | None, force: bool, report: Report,
    ) -> Bundle:  # fmt: skip
        """See `vitprune.pipelines.export`."""

    @abstractmethod
    def rewrite(
        self, path: Path, recipe: Recipe, output: Path, *, data: str | Path | None, preprocessing: str | None, force: bool,
        report: Report,
    ) -> Bundle:  # fmt: skip
        """See `vitprune.pipelines.rewrite`."""

    @abstractmethod
    def reference(self, module: Any, recipe: Recipe) -> Any:
        """See `vitprune.pipelines.reference`."""

    @abstractmethod
    def session(self, bundle: Bundle, backend: str, target: str | None = None) -> Session:
        """See `vitprune.pipelines.session`."""

    @abstractmethod
    def validate(
        self, bundle: Bundle, *, backend: str, target: str | None, reference: str, data: str | Path | None,
        weights: str | None, samples: int | None, report: Report,
    ) -> Verdict:  # fmt: skip
        """See `vitprune.pipelines.validate`."""

    @abstractmethod
    def calibrate(
        self, module: Any, recipe: Recipe, inputs: Images, preprocessing: dict[str, Any], goal: Goal, report: Report
    ) -> Calibration:
        """Settings that meet a goal on images.

        Raises:
            RecipeError: VP17x the goal.
        """
