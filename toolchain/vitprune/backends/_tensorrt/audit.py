"""What an engine's layers really compute with, read from the engine inspector, against what was asked for."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FLOATS = ("fp32", "fp16", "bf16", "fp8", "int8")
# Layers that do the arithmetic; names differ between TensorRT versions and fused layers join the names of their parts.
HEAVY = re.compile(r"gemm|matmul|matrix_?multiply|conv|fully_?connected|mha|attention", re.IGNORECASE)
# Decisions are FP32 in every mode.
ISLANDS = ("/prune/", "TokenSample")
_TYPES = (
    ("bf16", re.compile(r"\bbf16\b|bfloat", re.IGNORECASE)),
    ("fp16", re.compile(r"\bhalf\b|fp16", re.IGNORECASE)),
    ("fp8", re.compile(r"fp8|e4m3", re.IGNORECASE)),
    ("int8", re.compile(r"int8", re.IGNORECASE)),
    ("int64", re.compile(r"int64", re.IGNORECASE)),
    ("int32", re.compile(r"int32", re.IGNORECASE)),
    ("bool", re.compile(r"bool", re.IGNORECASE)),
    ("fp32", re.compile(r"\bfloat\b|fp32|float32", re.IGNORECASE)),
)


@dataclass(frozen=True)
class Layer:
    """One engine layer: its name with those of the ONNX nodes in it, its type, the number type it computes with ("" unknown)."""

    name: str
    kind: str
    precision: str

    @property
    def heavy(self) -> bool:
        """Whether it multiplies matrices or convolves."""
        return bool(HEAVY.search(self.kind) or HEAVY.search(self.name))


@dataclass(frozen=True)
class Audit:
    """Counts by number type over all layers and over the heavy ones, and heavy layers of another type than asked for."""

    layers: dict[str, int]
    heavy: dict[str, int]
    wrong: list[str]
    possible: bool

    def document(self) -> dict[str, Any]:
        """JSON-ready form for engine.json."""
        state = "not possible: the inspector gives no types" if not self.possible else "failed" if self.wrong else "ok"
        return {"layers_by_precision": self.layers, "heavy_layers_by_precision": self.heavy, "precision_audit": state}


def read_layers(text: str) -> list[Layer]:
    """Layers of the inspector's JSON; layers it only names have no precision.

    Raises:
        ValueError: the text is not the inspector's JSON.
    """
    document = json.loads(text)
    if not isinstance(document, dict) or not isinstance(document.get("Layers"), list):
        raise ValueError("it has no list 'Layers'")
    return [_layer(entry) for entry in document["Layers"]]


def _layer(entry: Any) -> Layer:
    if not isinstance(entry, dict):
        return Layer(str(entry), "", "")
    name = " ".join(filter(None, [str(entry.get("Name", "")), str(entry.get("Metadata", ""))]))
    types = [_type(tensor) for side in ("Inputs", "Outputs") for tensor in entry.get(side) or [] if isinstance(tensor, dict)]
    floating = [found for found in types if found in FLOATS]
    return Layer(name, str(entry.get("LayerType", "")), (floating or [found for found in types if found] or [""])[0])


def _type(tensor: dict[str, Any]) -> str:
    spelled = " ".join(str(value) for key, value in tensor.items() if re.search(r"format|data_?type", key, re.IGNORECASE))
    return next((name for name, pattern in _TYPES if pattern.search(spelled)), "")


def audit(layers: Sequence[Layer], asked: str, keep_fp32: Sequence[str] = ()) -> Audit:
    """Compare layers with the precision that was asked for.

    Args:
        layers: of the engine.
        asked: the recipe's precision mode. "int8" and "fp8" ask for at least one such layer; the others for all heavy layers.
        keep_fp32: parts of names of layers that stay FP32; decisions always do.
    """
    heavy = [layer for layer in layers if layer.heavy]
    known = [layer for layer in heavy if layer.precision]
    free = [layer for layer in known if layer.precision != "fp32" or not _kept(layer, keep_fp32)]
    wanted = "fp32" if asked == "tf32" else asked
    if wanted in ("int8", "fp8"):
        wrong = [] if any(layer.precision == wanted for layer in free) else free
    else:
        wrong = [layer for layer in free if layer.precision != wanted]
    return Audit(
        dict(sorted(Counter(layer.precision or "unknown" for layer in layers).items())),
        dict(sorted(Counter(layer.precision or "unknown" for layer in heavy).items())),
        [f"{layer.name} ({layer.precision})" for layer in wrong],
        bool(known),
    )


def _kept(layer: Layer, keep_fp32: Sequence[str]) -> bool:
    return any(part and part in layer.name for part in (*ISLANDS, *keep_fp32))
