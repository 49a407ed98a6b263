"""Pipeline of a cascade, which runs several models per image and answers at the first confident one (DVT, methods.md §4).

A bundle holds exit1.onnx, exit2.onnx and exit3.onnx, with the reuse tensors z and r as explicit inputs and outputs, and the host
carries out the exit rule. The manifest's io["models"] lists the model files with their inputs and outputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitprune.errors import RecipeError
from vitprune.methods.base import keys_of
from vitprune.methods.dvt.keys import Params
from vitprune.methods.pipeline import Calibration, Goal, Pipeline, Report, Session

if TYPE_CHECKING:
    from vitprune.bundle import Bundle
    from vitprune.data.images import Images
    from vitprune.recipe import Recipe
    from vitprune.validation.verdict import Verdict
    from vitprune.vit.loading import LoadedModel


class CascadePipeline(Pipeline):
    """Three graphs per bundle and a rule between them."""

    def load(self, name: str | None, recipe: Recipe, *, pretrained: bool, seed: int, weights: str | None) -> LoadedModel:
        """See `Pipeline.load`."""
        from vitprune.methods.dvt import members

        return members.load(name, recipe, pretrained=pretrained, seed=seed, weights=weights)

    def load_again(self, bundle: Bundle, recipe: Recipe, weights: str | None) -> Any:
        """See `Pipeline.load_again`."""
        from vitprune.methods.dvt.members import again

        return again(bundle.manifest.model["source"], recipe, weights)

    def export(
        self, module_or_name: Any, recipe: Recipe, output: Path, *, pretrained: bool, seed: int, weights: str | None,
        data: str | Path | None, force: bool, report: Report,
    ) -> Bundle:  # fmt: skip
        """See `vitprune.methods.dvt.exporting.export`."""
        from vitprune.methods.dvt.exporting import export

        return export(
            module_or_name,
            recipe,
            output,
            pretrained=pretrained,
            seed=seed,
            weights=weights,
            data=data,
            force=force,
            report=report,
        )

    def rewrite(
        self, path: Path, recipe: Recipe, output: Path, *, data: str | Path | None, preprocessing: str | None, force: bool,
        report: Report,
    ) -> Bundle:  # fmt: skip
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

    def reference(self, module: Any, recipe: Recipe) -> Any:
        """The PyTorch reference with early exit of a `vitprune.methods.dvt.reference.Cascade`."""
        from vitprune.methods.dvt.members import require_cascade
        from vitprune.methods.dvt.precision import in_precision
        from vitprune.methods.dvt.reference import EarlyExit

        return EarlyExit(in_precision(require_cascade(module), recipe), keys_of(recipe.prune, Params)).eval()

    def session(self, bundle: Bundle, backend: str, target: str | None = None) -> Session:
        """A session that runs members and exit rule on a backend."""
        from vitprune.methods.dvt.host import open_session

        return open_session(bundle, backend)

    def validate(
        self, bundle: Bundle, *, backend: str, target: str | None, reference: str, data: str | Path | None,
        weights: str | None, samples: int | None, report: Report,
    ) -> Verdict:  # fmt: skip
        """See `vitprune.methods.dvt.validating.validate`."""
        from vitprune.methods.dvt.validating import validate

        return validate(bundle, backend=backend, reference=reference, data=data, weights=weights, samples=samples, report=report)

    def calibrate(
        self, module: Any, recipe: Recipe, inputs: Images, preprocessing: dict[str, Any], goal: Goal, report: Report
    ) -> Calibration:
        """Exit thresholds: the best accuracy within the budget, by labels or else by agreement with the last exit."""
        from vitprune.methods.dvt.calibration import thresholds_for

        return thresholds_for(module, recipe, inputs, preprocessing, goal)
