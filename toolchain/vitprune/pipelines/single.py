"""The pipeline of a single pruned model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitprune.methods.pipeline import Calibration, Goal, Pipeline, Report, Session

if TYPE_CHECKING:
    from vitprune.bundle import Bundle
    from vitprune.data.images import Images
    from vitprune.recipe import Recipe
    from vitprune.validation.verdict import Verdict
    from vitprune.vit.loading import LoadedModel


class SingleModelPipeline(Pipeline):
    """One graph per bundle, tokens leave inside it."""

    def load(self, name: str | None, recipe: Recipe, *, pretrained: bool, seed: int, weights: str | None) -> LoadedModel:
        """See `Pipeline.load`."""
        from vitprune.vit.loading import load

        section = recipe.model if name is None else recipe.model.model_copy(update={"name": name})
        return load(section, pretrained=pretrained, seed=seed, weights=weights)

    def load_again(self, bundle: Bundle, recipe: Recipe, weights: str | None) -> Any:
        """See `Pipeline.load_again`."""
        from vitprune.backends.torch import dense_module

        return dense_module(bundle, weights)

    def export(
        self, module_or_name: Any, recipe: Recipe, output: Path, *, pretrained: bool, seed: int, weights: str | None,
        data: str | Path | None, force: bool, report: Report,
    ) -> Bundle:  # fmt: skip
        """See `vitprune.exporting.export.export`."""
        from vitprune.exporting.export import export

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
        """See `vitprune.exporting.rewrite.rewrite`."""
        from vitprune.exporting.rewrite import rewrite

        return rewrite(path, recipe, output, data=data, preprocessing=preprocessing, force=force, report=report)

    def reference(self, module: Any, recipe: Recipe) -> Any:
        """See `vitprune.vit.pruned.PrunedViT`."""
        from vitprune.vit.naflex import at_size
        from vitprune.vit.pruned import PrunedViT

        return PrunedViT(at_size(module, recipe.model.image_size), recipe).eval()

    def session(self, bundle: Bundle, backend: str, target: str | None = None) -> Session:
        """See `vitprune.backends.session`."""
        from vitprune import backends

        opened: Session = backends.session(bundle, backend, target)
        return opened

    def validate(
        self, bundle: Bundle, *, backend: str, target: str | None, reference: str, data: str | Path | None,
        weights: str | None, samples: int | None, report: Report,
    ) -> Verdict:  # fmt: skip
        """See `vitprune.validation.validate.validate`."""
        from vitprune.validation.validate import validate

        return validate(
            bundle,
            backend=backend,
            target=target,
            reference=reference,
            data=data,
            weights=weights,
            samples=samples,
            report=report,
        )

    def calibrate(
        self, module: Any, recipe: Recipe, inputs: Images, preprocessing: dict[str, Any], goal: Goal, report: Report
    ) -> Calibration:
        """See `vitprune.calibration.calibrating.calibrate`."""
        from vitprune.calibration.bench import Bench
        from vitprune.calibration.calibrating import calibrate

        bench = Bench(module, recipe, inputs.pixels)
        found = calibrate(
            bench, macs=goal.macs, tokens=goal.tokens, quantile=goal.quantile, report=report, schedule=goal.schedule
        )
        facts: dict[str, Any] = {
            "macs_share": round(found.measured.macs, 5), "mean_tokens": round(found.measured.tokens, 3),
            "tokens_per_site": [round(float(value), 2) for value in found.measured.counts.mean(axis=0)],
        }  # fmt: skip
        overflow = found.overflow if found.overflow is not None else float(found.measured.overflow.mean())
        facts |= {"overflow_rate": overflow} if found.overflow is not None or overflow else {}
        return Calibration(found.prune, facts, found.graph)
