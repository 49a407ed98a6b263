"""Quantised layers one by one: what the graph's product gives of its own input, and what the reference's layer gives of the same input.

Whole models in int8 drift apart, because a number on the edge between two steps goes the other way; a single layer on the same input does
not, so that a wrong scale, a wrong axis or a wrong factor shows here however small it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from vitprune.backends.onnxruntime import make_session
from vitprune.errors import ExportError
from vitprune.graph.lowering.rounding import emulated
from vitprune.graph.precision.audit import quantised_products

IMAGES = 4
LIMIT = 1e-5
LAYER = re.compile(r"blocks\.\d+\.(?:attn|mlp)\.(?:qkv|proj|fc1|fc2)$")


class Layers(Protocol):
    """A reference's quantised layers by name."""

    @property
    def quantised(self) -> list[str]:
        """Names of the layers that are."""

    def layer(self, name: str, x: Any, part: str = "") -> Any:
        """One layer's product of its input, without the bias; part: "q", "k" or "v" of a packed map."""

    def unsure(self, name: str, x: Any, part: str = "") -> Any:
        """How far apart two such products may be whose weights on the edge between two numbers of the type are rounded otherwise."""


def first_rows(pixels: NDArray[np.float32], static: int | None) -> NDArray[np.int64]:
    """Which images to look at: a few, or as many as a fixed batch takes."""
    return np.minimum(np.arange(static or min(IMAGES, len(pixels))), len(pixels) - 1)


def check_layers(
    model: onnx.ModelProto, reference: Layers, feeds: Mapping[str, NDArray[np.float32]]
) -> tuple[dict[str, Any], list[str]]:
    """Run the graph on a few images and every quantised product's input through the reference's layer of that name.

    Args:
        model: the finished graph. reference: its layers. feeds: inputs of the graph by name.

    A row counts as different where its largest difference is beyond `LIMIT` of the layer's largest result; an input on the edge between two
    steps may round either way, so that the median row decides. A weight there concerns all rows: what hangs on it is allowed.

    Returns:
        JSON-ready: `layers_compared`, `layers_max_abs` (of the median rows, relative); and a sentence per layer that differs.

    Raises:
        ExportError: VP318 when a product's layer cannot be told, or a layer the recipe quantises has none.
    """
    import torch

    probed, places = _probed(emulated(model))
    session = make_session(probed.SerializeToString(), spin=False)
    wanted = [name for place in places for name in place[2:]]
    found = dict(zip(wanted, session.run(wanted, dict(feeds)), strict=True))
    worst: dict[str, float] = {}
    with torch.inference_mode():
        for layer, part, data, result in places:
            ours, unsure = (of(layer, torch.from_numpy(found[data]), part).numpy() for of in (reference.layer, reference.unsure))
            largest = max(float(np.abs(ours).max(initial=0)), 1e-12)
            rows_apart = (np.abs(ours - found[result]) - unsure).clip(min=0).max(axis=-1).reshape(-1)
            worst[layer] = max(worst.get(layer, 0.0), float(np.median(rows_apart)) / largest)
    missing = set(reference.quantised) - worst.keys()
    if missing:
        raise _unknown(f"the graph quantises nothing for {sorted(missing)[0]}")
    wrong = [f"{layer} alone differs by {seen:.3g} of its largest result" for layer, seen in worst.items() if not seen <= LIMIT]
    return {"layers_compared": len(worst), "layers_max_abs": max(worst.values())}, wrong


def _probed(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[tuple[str, str, str, str]]]:
    """The model with inputs and results of its quantised products as outputs; per product layer, part of q, k, v, and the two names."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    makers = {name: node for node in result.graph.node for name in node.output}
    places, known = [], {value.name for value in result.graph.output}
    for node in quantised_products(result):
        quantize = makers[makers[node.input[0]].input[0]]
        layer = LAYER.search(quantize.output[0].removesuffix("/q"))
        if layer is None:
            raise _unknown(f"'{node.name}' belongs to no layer")
        part = re.search(r"(?:^|/)(?:cls_)?(q|k|v)(?:uery)?/matmul$", node.name)
        if layer[0].endswith("qkv") and part is None:
            raise _unknown(f"'{node.name}' is neither of queries, keys nor values")
        places.append((layer[0], part[1] if part and layer[0].endswith("qkv") else "", quantize.input[0], node.output[0]))
        for name in places[-1][2:]:
            if name not in known:
                known.add(name)
                result.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return result, places


def _unknown(cause: str) -> ExportError:
    return ExportError(
        318, "the graph cannot be given its types", cause=cause, next_step="report the model and recipe with this message"
    )
