"""A cascade in Triton: its members as models of the ONNX Runtime back end, and the rule between them as one of the Python back end (BLS).

DIR/NAME-exit1/1/model.onnx, ...   members: logits and what is handed to the next one
DIR/NAME/1/model.py                runs the members that images need; answers logits and the exit that gave them
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitprune.bundle import Bundle
from vitprune.device.triton_config import check, configuration, put
from vitprune.errors import TargetError

SERVER = Path(__file__).with_name("cascade_server.py")


def makers(bundle: Bundle) -> dict[str, Callable[[Path], None]]:
    """Name of a model -> what writes it into a folder; members first, so that the rule never stands without them.

    Raises:
        TargetError: VP248 members with a fixed batch: the rule asks them for what is left of one.
    """
    if bundle.recipe.graph.static_batch is not None:
        raise TargetError(
            248, "members of a cascade with a fixed batch cannot be served", cause="an exit leaves any number of images to the next one",
            next_step="export with graph.batch=1:4:8",
        )  # fmt: skip
    found: dict[str, Callable[[Path], None]] = {}
    for file in _members(bundle):
        found[_label(bundle, file)] = lambda place, file=file: _member(bundle, file, place)  # type: ignore[misc]
    found[bundle.manifest.name] = lambda place: _rule(bundle, place)
    return found


def _members(bundle: Bundle) -> list[str]:
    """Model files from the first exit on; not one that holds the whole cascade for batch 1."""
    return sorted(name for name in bundle.manifest.io["models"] if name.startswith("exit"))


def _label(bundle: Bundle, file: str) -> str:
    return f"{bundle.manifest.name}-{Path(file).stem}"


def _member(bundle: Bundle, file: str, place: Path) -> None:
    import onnx

    from vitprune.graph.lowering.tensorrt import inlined
    from vitprune.support.onnx_file import read_model

    io = bundle.manifest.io["models"][file]
    onnx.save(inlined(read_model(bundle.path / file)), str(place / "1" / "model.onnx"))
    config = configuration(_label(bundle, file), "onnxruntime", io["inputs"], io["outputs"], bundle.recipe.graph.profile)
    put(config, place)
    check(place)


def _rule(bundle: Bundle, place: Path) -> None:
    (place / "1" / "model.py").write_text(SERVER.read_text(encoding="utf-8"), encoding="utf-8")
    first = bundle.manifest.io["models"][_members(bundle)[0]]
    logits = next(entry for entry in first["outputs"] if entry["name"] == "logits")
    answer = [logits, {"name": "exit", "dtype": "int64", "shape": ["batch", 1]}]
    config = configuration(bundle.manifest.name, "python", first["inputs"], answer, bundle.recipe.graph.profile)
    config["default_model_filename"] = "model.py"
    config["parameters"] = [
        {"key": "members", "value": {"string_value": json.dumps([_ports(bundle, file) for file in _members(bundle)])}},
        {"key": "thresholds", "value": {"string_value": json.dumps(list(bundle.recipe.prune.thresholds))}},  # type: ignore[attr-defined]
    ]
    put(config, place)


def _ports(bundle: Bundle, file: str) -> dict[str, Any]:
    """Name, inputs and outputs of a member as the rule calls it."""
    io = bundle.manifest.io["models"][file]
    return {"name": _label(bundle, file), **{kind: [entry["name"] for entry in io[kind]] for kind in ("inputs", "outputs")}}
