"""A model repository for Triton: plain ONNX for its ONNX Runtime back end, and TensorRT engines that lie in the bundle.

    DIR/NAME/config.pbtxt                 inputs, outputs, batches
    DIR/NAME/1/model.onnx                 functions written out, logits or features only: no custom domain, no library to load
    DIR/NAME-TARGET/1/model.plan          an engine of a TensorRT target

Every configuration is read back and held against the model beside it before the folder appears.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from vitprune.bundle import Bundle
from vitprune.bundle_parts.output import unwritable
from vitprune.device.pbtxt import TYPES, parsed, written
from vitprune.errors import ExportError, RecipeError, TargetError
from vitprune.support import temporary
from vitprune.support.answers import heads_and_lists, joined
from vitprune.support.replacing import replaced

DELAY_US = 1000  # longest that a request waits for others to share its batch


def package_triton(bundle: Bundle, folder: Path, force: bool = False) -> list[str]:
    """Write the model repository of a bundle.

    Args:
        bundle: opened. folder: the repository, which may hold other models. force: replace models of the same name.

    Returns:
        Names of the models.

    Raises:
        TargetError: VP248 a bundle of several models, or an engine that Triton could not load. RecipeError: VP106 a model is there, VP107
            unwritable. ExportError: VP340 configuration and model disagree, or the packaged model answers otherwise than the bundle's.
    """
    if len(bundle.model_files) != 1:
        raise TargetError(
            248, "a cascade makes no single model of Triton", cause=f"the bundle holds {', '.join(bundle.model_files)}, of which a host chooses",
            next_step="run it with vitprune's own session, or package a bundle of a single model",
        )  # fmt: skip
    name = bundle.manifest.name
    makers = {name: lambda place: _onnx(bundle, name, place)}
    for target, engine in _engines(bundle).items():
        label = f"{name}-{target}"
        makers[label] = lambda place, engine=engine, label=label: _engine(bundle, label, engine, place)  # type: ignore[misc]
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


def configuration(
    bundle: Bundle, name: str, backend: str, inputs: list[Any], outputs: list[Any], profile: tuple[int, int, int]
) -> dict[str, Any]:
    """Triton's configuration of a model.

    Args:
        inputs, outputs: name, type as ONNX calls it, shape with the batch first (a text or None where it is not fixed). profile: batches
            (min, opt, max).
    """
    fixed = isinstance(inputs[0]["shape"][0], int)
    config: dict[str, Any] = {
        "name": name, "backend": backend, "default_model_filename": "model.onnx" if backend == "onnxruntime" else "model.plan",
        "max_batch_size": 0 if fixed else profile[2],
        "input": [_tensor(entry, fixed) for entry in inputs], "output": [_tensor(entry, fixed) for entry in outputs],
    }  # fmt: skip
    if not fixed and profile[2] > 1:
        preferred = {"preferred_batch_size": [profile[1]]} if profile[1] > 1 else {}
        config["dynamic_batching"] = {**preferred, "max_queue_delay_microseconds": DELAY_US}
    return config


def _tensor(entry: dict[str, Any], fixed: bool) -> dict[str, Any]:
    shape = entry["shape"] if fixed else entry["shape"][1:]
    return {
        "name": entry["name"],
        "data_type": TYPES[entry["dtype"]],
        "dims": [size if isinstance(size, int) else -1 for size in shape],
    }


def _onnx(bundle: Bundle, name: str, place: Path) -> None:
    import onnx

    from vitprune.graph.lowering.logits import with_logits_only
    from vitprune.graph.lowering.tensorrt import inlined
    from vitprune.support.onnx_file import read_model

    file = place / "1" / "model.onnx"
    with_logits_only(bundle.model_path, file)
    onnx.save(inlined(read_model(file)), str(file))
    io = bundle.manifest.io
    config = configuration(bundle, name, "onnxruntime", io["inputs"], _heads(bundle), bundle.recipe.graph.profile)
    (place / "config.pbtxt").write_text(written(config), encoding="utf-8")
    check(place)
    _same_answers(bundle, file)


def check(place: Path) -> None:
    """Hold config.pbtxt against the ONNX model beside it, as ONNX Runtime opens it.

    Raises:
        ExportError: VP340.
    """
    from vitprune.backends.onnxruntime import make_session

    try:
        config = parsed((place / "config.pbtxt").read_text(encoding="utf-8"))
        if config["name"] != place.name and not place.name.startswith("."):
            raise ValueError(f"it names '{config['name']}', its folder is '{place.name}'")
        session = make_session((place / "1" / config["default_model_filename"]).read_bytes())
        batch = config["max_batch_size"]
        for kind, real in (("input", session.get_inputs()), ("output", session.get_outputs())):
            stated = {entry["name"]: entry for entry in config[kind]}
            if len(stated) != len(config[kind]) or set(stated) != {value.name for value in real}:
                raise ValueError(f"{kind}s are {sorted(stated)}, the model has {sorted(value.name for value in real)}")
            for value in real:
                _agrees(stated[value.name], value, batch)
    except (KeyError, ValueError, OSError) as error:
        raise ExportError(
            340, "Triton's configuration does not fit the model", cause=str(error), next_step="report the bundle's manifest with this message"
        ) from error  # fmt: skip


def _agrees(stated: dict[str, Any], real: Any, batch: int) -> None:
    kind = TYPES.get(str(real.type).removeprefix("tensor(").removesuffix(")"))
    if stated["data_type"] != kind:
        raise ValueError(f"'{real.name}' is stated as {stated['data_type']}, the model has {kind}")
    shape = [size if isinstance(size, int) else -1 for size in real.shape]
    if batch and shape[0] != -1:
        raise ValueError(f"max_batch_size is {batch}, '{real.name}' has the fixed batch {shape[0]}")
    if not batch and shape[0] == -1:
        raise ValueError(f"max_batch_size is 0, '{real.name}' has a free batch")
    if stated["dims"] != (shape[1:] if batch else shape):
        raise ValueError(f"'{real.name}' is stated as {stated['dims']}, the model has {shape}")


def _same_answers(bundle: Bundle, file: Path) -> None:
    from vitprune.backends.onnxruntime import make_session

    images = bundle.samples()["images"][: bundle.recipe.graph.static_batch or 2]
    if bundle.recipe.graph.static_batch is not None and len(images) < bundle.recipe.graph.static_batch:
        images = np.resize(images, (bundle.recipe.graph.static_batch, *images.shape[1:]))
    sessions = [make_session(path.read_bytes()) for path in (bundle.model_path, file)]
    names = [value.name for value in sessions[1].get_outputs()]
    answers = [joined(session.run(names, {session.get_inputs()[0].name: images})) for session in sessions]
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
    config = configuration(bundle, name, "tensorrt", bundle.manifest.io["inputs"], outputs, (low, best, high))
    text = written(config)
    if parsed(text) != config:
        raise ExportError(340, "Triton's configuration cannot be read back", cause=name, next_step="report the bundle's manifest")
    (place / "config.pbtxt").write_text(text, encoding="utf-8")
