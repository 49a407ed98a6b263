"""Channel outliers evened out, exactly: a factor moves from a norm's gain and bias, or from values, into the weights that read them.

SmoothQuant (Xiao et al., ICML 2023, arXiv:2211.10438), eq. 4: channel j of the input is divided by s_j = max|X_j|^a / max|W_j|^(1-a) and
row j of the weights multiplied by it. Here s_j is rounded to a power of two, so that no number is rounded by it and the float32 model
computes what it did, to the last bit. Where anything else reads the channels (a score that looks at values), they are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vitprune.graph.precision.linears import ROWS, LinearMap, constants, makers, readers, source_of
from vitprune.graph.protos import drop_unread
from vitprune.support.precision import exponents

VALUES = {"Reshape", "Transpose"}


@dataclass(frozen=True)
class Site:
    """One layer whose input can be divided by channel: where its parts are, and the maps whose weights take the factor up.

    layer: its name. before: initialisers with one number per channel (gain and bias of a norm, bias of values), which node `owner` reads.
    columns: linear maps whose results are the channels (values), () for a norm. after: the linear maps that read.
    """

    layer: str
    owner: str
    before: tuple[str, ...]
    columns: tuple[LinearMap, ...]
    after: tuple[LinearMap, ...]


def sites(model: onnx.ModelProto, maps: Sequence[LinearMap]) -> list[Site]:
    """The layers whose inputs can be smoothed exactly: qkv and fc1 behind a LayerNormalization, proj behind values."""
    above, below = makers(model), readers(model)
    by_layer: dict[str, list[LinearMap]] = {}
    for one in maps:
        by_layer.setdefault(one.layer, []).append(one)
    known = constants(model)
    found = []
    for layer, own in by_layer.items():
        site = _behind_norm(layer, own, above, below) or _behind_values(layer, own, maps, above, below)
        if site is not None and all(name in known and known[name].ndim == 1 for name in site.before):
            found.append(site)
    return found


def _behind_norm(
    layer: str, own: list[LinearMap], above: Mapping[str, onnx.NodeProto], below: Mapping[str, list[onnx.NodeProto]]
) -> Site | None:
    sources = {source_of(one.data, above) for one in own}
    norm = above.get(sources.pop()) if len(sources) == 1 else None
    if norm is None or norm.op_type != "LayerNormalization" or len(norm.output) != 1:
        return None
    if not _read_only_by(norm.output[0], {one.node for one in own}, below):
        return None
    return Site(layer, norm.name, tuple(name for name in norm.input[1:] if name), (), tuple(own))


def _read_only_by(tensor: str, nodes: set[str], below: Mapping[str, list[onnx.NodeProto]]) -> bool:
    """Whether a tensor's rows go into these nodes and nowhere else."""
    for node in below.get(tensor, []):
        if node.op_type in ROWS and node.input[0] == tensor:
            if not all(_read_only_by(name, nodes, below) for name in node.output):
                return False
        elif node.name not in nodes:
            return False
    return True


def _behind_values(
    layer: str, own: list[LinearMap], maps: Sequence[LinearMap], above: Mapping[str, onnx.NodeProto],
    below: Mapping[str, list[onnx.NodeProto]],
) -> Site | None:  # fmt: skip
    """Heads of context are mixtures of value rows, so a factor per channel goes through; every step there is read by the next alone."""
    if len(own) != 1:
        return None
    tensor = own[0].data
    while (node := above.get(tensor)) is not None and node.op_type in VALUES:
        if len(below[tensor]) != 1:
            return None
        tensor = node.input[0]
    if node is None or node.op_type != "MatMul" or len(below[tensor]) != 1:
        return None
    tensor = node.input[1]
    while (node := above.get(tensor)) is not None and node.op_type in VALUES:
        if len(below[tensor]) != 1:
            return None
        tensor = node.input[0]
    biases: tuple[str, ...] = ()
    owner = ""
    if node is not None and node.op_type == "Add" and len(below[tensor]) == 1:
        made = [name for name in node.input if name in above and above[name].op_type in ("MatMul", "Gemm")]
        if len(made) != 1:
            return None
        biases, owner = tuple(name for name in node.input if name != made[0]), node.name
        tensor = made[0]
    columns = [one for one in maps if above.get(tensor) is not None and one.node == above[tensor].name]
    if len(columns) != 1 or len(below[tensor]) != 1:
        return None
    return Site(layer, owner, biases, tuple(columns), tuple(own))


def factors(inputs: NDArray[np.float32], weights: NDArray[np.float32], strength: float) -> list[int]:
    """Exponents of two by channel, the middle channel's 0.

    Args:
        inputs, weights: [C], largest magnitude of a channel, and of the row of weights that reads it. strength: alpha of eq. 4.
    """
    alive = (inputs > 0) & (weights > 0)
    if not alive.any():
        return [0] * len(inputs)
    logs = strength * np.log2(inputs[alive]) - (1 - strength) * np.log2(weights[alive])
    found = np.zeros(len(inputs), int)
    found[alive] = np.rint(logs - np.median(logs))
    return [int(value) for value in found]


def row_maxima(model: onnx.ModelProto, site: Site) -> NDArray[np.float32]:
    """Largest magnitude of the weights that read each input channel of a site: [C]."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    rows = [np.abs(numpy_helper.to_array(stored[one.weight])).max(axis=one.out_axis) for one in site.after]
    most: NDArray[np.float32] = np.max(rows, axis=0)
    return most


def probed(model: onnx.ModelProto, places: Sequence[Site]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model with one more output per input of a site, its largest magnitude by channel [C]; and the layer of every added output."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    outputs: dict[str, str] = {}
    shape = "probe/channels/shape"
    graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), shape))
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    axes: list[str] = []
    if opset >= 18:
        axes = ["probe/channels/axes"]
        graph.initializer.append(numpy_helper.from_array(np.array([0, 1], np.int64), axes[0]))
    for site in places:
        for number, name in enumerate(dict.fromkeys(one.data for one in site.after)):
            base = f"probe/channels/{site.layer}/{number}"
            attributes: dict[str, Any] = {} if axes else {"axes": [0, 1]}
            graph.node.append(helper.make_node("Abs", [name], [f"{base}/size"], name=f"{base}/size"))
            graph.node.append(
                helper.make_node(
                    "ReduceMax", [f"{base}/size", *axes], [f"{base}/most"], name=f"{base}/most", keepdims=0, **attributes
                )
            )
            graph.node.append(helper.make_node("Reshape", [f"{base}/most", shape], [base], name=base))
            graph.output.append(helper.make_tensor_value_info(base, TensorProto.FLOAT, [None]))
            outputs[base] = site.layer
    return result, outputs


def fold(model: onnx.ModelProto, places: Sequence[Site], letters: Mapping[str, str]) -> onnx.ModelProto:
    """The model with the factors of the named layers moved: the same results, to the last bit where nothing over- or underflows.

    Args:
        model: float32; not changed. places: of `sites`. letters: exponents by layer; a layer without a site must not be named.
    """
    if not letters:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.value_info[:]
    nodes = {node.name: node for node in graph.node}
    values: dict[str, NDArray[Any]] = dict(constants(result))
    readers_of: dict[str, list[onnx.NodeProto]] = readers(result)
    made: list[TensorProto] = []
    here = {site.layer: site for site in places}

    def replaced(name: str, factor: NDArray[Any], layer: str, users: set[str]) -> None:
        new = f"{name}/{layer}/smooth"
        made.append(numpy_helper.from_array((values[name] * factor).astype(np.float32), new))
        values[new] = numpy_helper.to_array(made[-1])
        for node in readers_of[name]:
            if node.name in users:
                node.input[:] = [new if given == name else given for given in node.input]
                readers_of.setdefault(new, []).append(node)

    def current(one: LinearMap) -> str:
        return str(nodes[one.node].input[1])

    for layer, text in letters.items():
        site = here[layer]
        factor = np.exp2(np.array(exponents(text), np.float32)).astype(np.float32)
        for name in site.before:
            replaced(name, 1 / factor, layer, {site.owner})
        for one in site.columns:
            replaced(current(one), 1 / factor if one.out_axis == 1 else 1 / factor[:, None], f"{layer}/columns", {one.node})
        for name in dict.fromkeys(current(one) for one in site.after):
            users = {one.node for one in site.after if current(one) == name}
            axis = next(one.out_axis for one in site.after if one.node in users)
            replaced(name, factor[:, None] if axis == 1 else factor, layer, users)
    graph.initializer.extend(made)
    drop_unread(graph)
    return result
