"""What is timed: a bundle on a runtime, and its dense model in the same precision and lowering on the same runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitprune import backends, engines, pipelines, targets
from vitprune.backends._engines import find
from vitprune.benchmarking.oracle import slice_oracle
from vitprune.bundle import Bundle
from vitprune.engines import building
from vitprune.errors import RecipeError
from vitprune.exporting.dense_twin import dense_of
from vitprune.exporting.inspecting import inspect
from vitprune.graph.lowering.rounding import emulated
from vitprune.support import onnx_weights
from vitprune.targets import Target

Report = Callable[[str], None]
ONNXRUNTIME = "onnxruntime"


@dataclass(frozen=True)
class Runtime:
    """Where everything is run: the backend, the target whose engines are meant (None: model.onnx itself), threads of CPU kernels."""

    backend: str
    target: Target | None
    threads: int

    @property
    def gpu(self) -> bool:
        """Whether it computes on a GPU."""
        return self.backend != ONNXRUNTIME

    @property
    def options(self) -> dict[str, Any]:
        """Of the session: idle threads must not spin while it is another's turn."""
        return {"threads": self.threads, "spin": False} if self.backend == ONNXRUNTIME else {}


def runtime(target: str | None, backend: str, threads: int) -> Runtime:
    """The runtime that options name; a target's backend wins."""
    chosen = targets.load(target) if target is not None else None
    return Runtime((chosen.backend if chosen else backend).replace("-", "_"), chosen, threads)


def pruned(bundle: Bundle, where: Runtime) -> Any:
    """A session of a bundle.

    Raises:
        RecipeError: VP187 engines of a cascade are asked for; what the backend's session raises.
    """
    if len(bundle.model_files) > 1:
        if where.target is not None:
            raise RecipeError(
                187, "engines of a cascade are not timed", cause="its host code runs the models of the bundle themselves",
                next_step="leave --target out",
            )  # fmt: skip
        return pipelines.session(bundle, where.backend)
    name = None if where.target is None else where.target.name
    if not where.options:
        return backends.session(bundle, where.backend, name)
    return backends.get(where.backend).Session(bundle, target=name, **where.options)


def dense(bundle: Bundle, where: Runtime, folder: Path, report: Report) -> Path:
    """The file of the dense model of a bundle, lowered for the runtime as the bundle's own engine was.

    Args:
        bundle, where: as for `pruned`. folder: for the files this takes. report: called with progress texts.

    Raises:
        LoadError: VP650, VP651 the dense graph. BuildError: VP5xx its engine.
    """
    report("the dense model")
    return lowered(dense_of(bundle), bundle, where, folder, report)


def oracle(bundle: Bundle, where: Runtime, folder: Path, report: Report) -> Path:
    """The file of the slice oracle of a bundle: its dense model cut by plain slices to the token counts that its samples keep.

    Raises:
        RecipeError: VP189 there is none for this bundle. Others as for `dense`.
    """
    report("the slice oracle")
    if bundle.recipe.precision.mode != "fp32" or bundle.recipe.output.features or len(bundle.model_files) > 1:
        raise RecipeError(
            189, f"there is no slice oracle of '{bundle.manifest.name}'", cause="it is made of single fp32 models that give logits",
            next_step="leave --oracle out",
        )  # fmt: skip
    kept = [round(site["kept_mean"]) for site in inspect(bundle)["sites"]]
    return lowered(slice_oracle(dense_of(bundle), bundle.recipe, kept), bundle, where, folder, report)


def lowered(model: onnx.ModelProto, bundle: Bundle, where: Runtime, folder: Path, report: Report) -> Path:
    """The file of a model, in the form that the bundle's own takes on this runtime."""
    file = folder / "plain.onnx"
    if where.target is None:
        onnx_weights.save(emulated(model) if where.backend == ONNXRUNTIME else model, file)
        return file
    onnx_weights.save(model, file)
    built = find(bundle, where.backend, where.target.name)
    engine = folder / where.target.engine_file
    plugin = built.facts.get("plugin")
    request = {
        "backend": where.target.backend, "model": str(file), "output": str(engine), "log": str(folder / "build.log"),
        "batch": built.document.get("batch", bundle.recipe.graph.profile), "workspace_mib": where.target.workspace_mib,
        "plugin": "auto" if plugin else "none", "precision": bundle.recipe.precision.mode,
        "keep_fp32": engines.float32_layers(bundle, "model.onnx"), "kept_outputs": False, "embed_plugin": False,
        "architectures": [] if where.target.architectures == "auto" else where.target.architectures,
    }  # fmt: skip
    building.run_child(request, lambda text: report(f"{folder.name}: {text}"), timeout=1800)
    return engine


def dense_session(bundle: Bundle, where: Runtime, file: Path) -> Any:
    """A session of a file of `dense` or `oracle`."""
    return backends.get(where.backend).Session(bundle, engine=file, **where.options)


def batches(images: NDArray[np.float32], size: int, most: int) -> list[NDArray[np.float32]]:
    """At most `most` batches of `size` images each, images repeated where there are too few for one."""
    count = max(1, min(most, len(images) // size))
    rows = np.resize(np.arange(len(images)), count * size)
    return [np.ascontiguousarray(images[part]) for part in np.split(rows, count)]


def require_batch(bundle: Bundle, where: Runtime, size: int) -> None:
    """Refuse a batch that the graph or its engine does not take.

    Raises:
        RecipeError: VP188.
    """
    profile = bundle.recipe.graph.profile
    if where.target is not None:
        profile = tuple(find(bundle, where.backend, where.target.name).document.get("batch", profile))
    low, _, high = profile
    if not low <= size <= high:
        raise RecipeError(
            188, f"batch {size} is not in the profile {low} to {high} of '{bundle.manifest.name}'",
            cause="graph and engine are made for other batches", next_step=f"--batch {low}, or export with graph.batch=\"1:{size}:{size}\"",
        )  # fmt: skip
