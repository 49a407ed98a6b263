"""A model repository for Triton: plain ONNX for its ONNX Runtime back end, and TensorRT engines that lie in the bundle.

    DIR/NAME/config.pbtxt                 inputs, outputs, batches
    DIR/NAME/1/model.onnx                 functions written out, logits or features only: no custom domain, no library to load
    DIR/NAME-TARGET/1/model.plan          an engine of a TensorRT target
    DIR/NAME-exit1, ... and DIR/NAME      members of a cascade, and the rule between them: `triton_cascade`

Every configuration is read back and held against the model beside it before the folder appears.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vitprune.bundle import Bundle
from vitprune.bundle_parts.output import unwritable
from vitprune.device import triton_cascade
from vitprune.device.triton_config import check, configuration, put
from vitprune.errors import ExportError, RecipeError, TargetError
from vitprune.support import temporary
from vitprune.support.answers import heads_and_lists, joined
from vitprune.support.replacing import replaced


def package_triton(bundle: Bundle, folder: Path, force: bool = False) -> list[str]:
    """Write the model repository of a bundle.

    Args:
        bundle: opened. folder: the repository, which may hold other models. force: replace models of the same name.

    Returns:
        Names of the models.

    Raises:
        TargetError: VP248 an engine that Triton could not load. RecipeError: VP106 a model is there, VP107
            unwritable. ExportError: VP340 configuration and model disagree, or the packaged model answers otherwise than the bundle's.
    """
    makers = _makers(bundle) if len(bundle.model_files) == 1 else triton_cascade.makers(bundle)
    taken = [label for label in makers if (folder / label).exists()]
    if taken and not force:
        raise RecipeError(
            106, f"'{folder / taken[0]}' exists", cause="nothing is overwritten unless asked", next_step="add --force"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for label, make in makers.items():
            with temporary.folder(folder / label) as new:
                (new / "1").mkdir()
                make(new)
                with replaced(new, folder / label):
                    pass
    except OSError as error:
        raise unwritable(folder, error) from error
    return list(makers)


def _makers(bundle: Bundle) -> dict[str, Callable[[Path], None]]:
    """Name of a model -> what writes it into a folder."""
    name = bundle.manifest.name
    found: dict[str, Callable[[Path], None]] = {name: lambda place: _onnx(bundle, name, place)}
    for target, engine in _engines(bundle).items():
        label = f"{name}-{target}"
        found[label] = lambda place, engine=engine, label=label: _engine(bundle, label, engine, place)  # type: ignore[misc]
    return found


def _onnx(bundle: Bundle, name: str, place: Path) -> None:
    from vitprune.graph.lowering.logits import with_logits_only
    from vitprune.graph.lowering.tensorrt import inlined
    from vitprune.support import onnx_weights
    from vitprune.support.onnx_file import read_model

    file = place / "1" / "model.onnx"
    with_logits_only(bundle.model_path, file)
    onnx_weights.save(inlined(read_model(file)), file)
    io = bundle.manifest.io
    config = configuration(name, "onnxruntime", io["inputs"], _heads(bundle), bundle.recipe.graph.profile)
    put(config, place)
    check(place)
    _same_answers(bundle, file)


def _same_answers(bundle: Bundle, file: Path) -> None:
    from vitprune.backends.onnxruntime import as_read, make_session

    images = bundle.samples()["images"][: bundle.recipe.graph.static_batch or 2]
    if bundle.recipe.graph.static_batch is not None and len(images) < bundle.recipe.graph.static_batch:
        images = np.resize(images, (bundle.recipe.graph.static_batch, *images.shape[1:]))
    sessions = [make_session(path) for path in (bundle.model_path, file)]
    names = [value.name for value in sessions[1].get_outputs()]
    answers = [joined(session.run(names, {session.get_inputs()[0].name: as_read(session, images)})) for session in sessions]
    largest = float(np.abs(answers[0].astype(np.float64) - answers[1]).max())
    scale = max(1.0, float(np.abs(answers[0].astype(np.float64)).max()))
    if not largest <= scale * (1e-5 if bundle.recipe.precision.mode == "fp32" else 1e-2):
        raise ExportError(
            340, "the packaged model answers otherwise than the bundle's", cause=f"logits differ by {largest:.2g}",
            next_step="vitprune validate BUNDLE",
        )  # fmt: skip


def _engines(bundle: Bundle) -> dict[str, Path]:
    """Whole engines of TensorRT proper that need no library; TensorRT-RTX and ONNX Runtime have other forms."""
    from vitprune.backends._engines import list_engines, state

    found = {}
    for target, built in list_engines(bundle.path).items():
        if built.document.get("backend") != "tensorrt":
            continue
        if why := state(bundle, target):
            raise TargetError(248, f"the engine for '{target}' is damaged", cause=why, next_step="vitprune build-engine --force")
        if built.document.get("facts", {}).get("plugin"):
            raise TargetError(
                248, f"the engine for '{target}' needs the plugin library", cause="Triton loads it only where its server was started with it",
                next_step="build the engine with --plugin none",
            )  # fmt: skip
        found[target] = built.path
    return found


def _heads(bundle: Bundle) -> list[dict[str, Any]]:
    """What the manifest says of the outputs that answer: logits or features."""
    outputs = bundle.manifest.io["outputs"]
    heads, _ = heads_and_lists(str(entry["name"]) for entry in outputs)
    return list(outputs[: len(heads)])


def _engine(bundle: Bundle, name: str, engine: Path, place: Path) -> None:
    from vitprune.backends._engines import read

    document = read(engine.parent / "engine.json").document
    outputs = _heads(bundle)
    heads, given = [str(entry["name"]) for entry in outputs], document.get("facts", {}).get("outputs")
    if given != heads:
        raise TargetError(
            248, f"outputs of the engine '{name}' are not those that are served", cause=f"it gives {given}, served are {heads}",
            next_step="build it again with vitprune build-engine, without --kept-outputs",
        )  # fmt: skip
    low, best, high = (int(size) for size in document["batch"])
    if low > 1 and low != high:
        raise TargetError(
            248, f"the engine '{name}' takes no batch of one", cause=f"its profile is {low}:{best}:{high}, and Triton sends single requests",
            next_step="build it with --batch 1:N:M",
        )  # fmt: skip
    shutil.copyfile(engine, place / "1" / "model.plan")
    config = configuration(name, "tensorrt", bundle.manifest.io["inputs"], outputs, (low, best, high))
    put(config, place)
