"""The public verbs: export, rewrite, reference, open_bundle, session, validate. Each asks the pipeline of the recipe's method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitprune import bundle as bundles
from vitprune import methods
from vitprune.bundle import Bundle, check_output
from vitprune.errors import VitpruneError
from vitprune.methods.pipeline import Pipeline, Report, Session
from vitprune.pipelines.single import SingleModelPipeline

if TYPE_CHECKING:
    from vitprune.backends import Result
    from vitprune.recipe import Recipe
    from vitprune.validation.verdict import Verdict


def of(recipe: Recipe) -> Pipeline:
    """The pipeline of a recipe's method."""
    return methods.get(recipe.prune.method).pipeline or SingleModelPipeline()


class RunnableBundle(Bundle):
    """A bundle that finds its own way to a backend."""

    def run(self, x: Any, backend: str = "onnxruntime") -> Result:
        """Run images float32 [B,C,H,W] (already preprocessed) on a backend.

        Raises:
            LoadError: VP61x when the backend is not installed or refuses the model; VP603 on a wrong input shape.
        """
        return session(self, backend).run(x)


def _runnable(opened: Bundle) -> RunnableBundle:
    return RunnableBundle(opened.path, opened.manifest, opened.recipe, opened.foreign_code)


def _silent(text: str) -> None:
    """Progress that nobody asked for."""


def open_bundle(path: str | Path, foreign_code: bool = False) -> RunnableBundle:
    """Open a bundle and verify its files; arguments and errors as `vitprune.bundle.open_bundle`."""
    return _runnable(bundles.open_bundle(path, foreign_code))


def export(
    module_or_name: Any,
    recipe: Recipe,
    output: str | Path,
    *,
    pretrained: bool = True,
    seed: int = 0,
    weights: str | None = None,
    data: str | Path | None = None,
    force: bool = False,
    report: Report = _silent,
) -> RunnableBundle:
    """Export a timm VisionTransformer with token pruning.

    Args:
        module_or_name: a timm model name (None = the recipe's) or a VisionTransformer instance, compiled by torch.compile or not.
        recipe: what to prune and how to export.
        output: folder of the new bundle.
        pretrained: take timm's weights for a name; seed: of random weights; weights: a checkpoint file.
        data: images for the samples (.npz or image folder); synthetic ones otherwise.
        force: replace an existing bundle.
        report: called with progress texts.

    Raises:
        ExportError: VP30x the model, VP31x the method does not fit it, VP32x the graph, VP330 graph and reference disagree.
        RecipeError: VP106, VP107 the output; VP11x the recipe does not fit the model.
    """
    from vitprune.vit.fitting import unwrapped
    from vitprune.vit.loading import require_torch

    check_output(Path(output), force)
    require_torch("export")
    made = of(recipe).export(
        unwrapped(module_or_name), recipe, Path(output),
        pretrained=pretrained, seed=seed, weights=weights, data=data, force=force, report=report,
    )  # fmt: skip
    return _runnable(made)


def rewrite(
    onnx_path: str | Path,
    recipe: Recipe,
    output: str | Path,
    *,
    data: str | Path | None = None,
    preprocessing: str | None = None,
    force: bool = False,
    report: Report = _silent,
) -> RunnableBundle:
    """Apply a recipe to a dense ViT ONNX from any exporter.

    Args:
        onnx_path: the dense graph. recipe, output, data, force, report: as for `export`.
        preprocessing: what the model was trained on: a Hugging Face preprocessor_config.json or a timm name. The recipe's
            model.mean, std, interpolation and crop_pct win, its model.name stands in; where nobody states it, it is unknown.

    Raises:
        LoadError: VP604 the file is missing or not ONNX. ExportError: VP32x the graph is not understood, VP331 the canonical
            graph differs from the dense one. RecipeError: as for `export`. LoadError: VP620, VP621 `preprocessing`, VP628 accuracy is
            gated and preprocessing is unknown.
    """
    check_output(Path(output), force)
    try:
        return _runnable(
            of(recipe).rewrite(
                Path(onnx_path), recipe, Path(output), data=data, preprocessing=preprocessing, force=force, report=report
            )
        )
    except (VitpruneError, OSError):
        raise
    except Exception:
        from vitprune.exporting.runnable import require_runnable

        require_runnable(Path(onnx_path))  # a graph that cannot run is named so; what is left is a defect of ours
        raise


def reference(module: Any, recipe: Recipe) -> Any:
    """The PyTorch reference of a recipe on a timm VisionTransformer (or a cascade), in evaluation mode.

    Args:
        module: the trained model; it is used, not copied.
        recipe: what to prune.

    Returns:
        A module: forward(x [B,C,H,W]) -> logits [B,classes]; afterwards `kept`, `margin`, `overflow`.

    Raises:
        ExportError: VP31x when there is nothing that could be patched.
        RecipeError: VP11x when the recipe does not fit the model.
    """
    from vitprune.vit.fitting import unwrapped

    return of(recipe).reference(unwrapped(module), recipe)


def session(bundle: Bundle, backend: str, target: str | None = None) -> Session:
    """A session of a bundle on a backend, with `run(x) -> Result`.

    Args:
        bundle: an opened bundle. backend: its name. target: whose engine, where the bundle has several for the backend.

    Raises:
        LoadError: VP610 unknown backend, VP611 not installed here; what the backend's session raises.
    """
    return of(bundle.recipe).session(bundle, backend, target)


def validate(
    bundle: Bundle,
    *,
    backend: str = "onnxruntime",
    target: str | None = None,
    reference: str = "auto",
    data: str | Path | None = None,
    weights: str | None = None,
    samples: int | None = None,
    report: Report = _silent,
) -> Verdict:
    """Run a bundle on a backend against its reference and decide.

    Args:
        bundle: an opened bundle. backend: what to run it on. target: whose engine, where the bundle has several for the backend.
        reference: "torch" (live), "stored" (samples.npz) or "auto": live where the model can be made again, else stored; or the name of
            another backend, or "target:NAME" for an engine of the bundle.
        data: images and labels for a live reference; the stored samples otherwise.
        weights: checkpoint for the live reference, where the bundle names a file that is not here.
        samples: number of images instead of the recipe's.
        report: called with progress texts.

    Raises:
        LoadError: VP61x backend, VP613 no live reference, VP62x data. RecipeError: VP120-range of recipes; VP109 accuracy is gated
            and there are no labels.
    """
    return of(bundle.recipe).validate(
        bundle, backend=backend, target=target, reference=reference, data=data, weights=weights, samples=samples, report=report
    )
