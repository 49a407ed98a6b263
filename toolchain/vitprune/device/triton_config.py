"""Configurations of Triton: written from what a model takes and gives, and held against the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitprune.device.pbtxt import TYPES, parsed, written
from vitprune.errors import ExportError

DELAY_US = 1000  # longest that a request waits for others to share its batch


def configuration(
    name: str, backend: str, inputs: list[Any], outputs: list[Any], profile: tuple[int, int, int]
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


def put(config: dict[str, Any], folder: Path) -> None:
    """Write config.pbtxt into a model's folder, after reading the text back.

    Raises:
        ExportError: VP340 what is read is not what was to be written.
    """
    text = written(config)
    if parsed(text) != config:
        raise ExportError(
            340,
            "Triton's configuration cannot be read back",
            cause=str(config["name"]),
            next_step="report the bundle's manifest",
        )
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")


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
        session = make_session(place / "1" / config["default_model_filename"])
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
