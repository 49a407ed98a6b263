"""The last stage of a dense CvT graph: find its blocks.

CvT's queries, keys and values are linear maps of depthwise convolutions over the token grid, CLS beside it. The definition of
sampling under such projections is that of `vitprune.methods.ats.cvt_reference`; here it is written with plain operators. Earlier stages have no
CLS token and stay as they are. Attention, scores, TokenSample and the kept outputs are those of the ViT passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from vitprune.errors import ExportError
from vitprune.graph.anatomy import find as vit
from vitprune.graph.anatomy import projections, walking
from vitprune.graph.anatomy.find import Anatomy, Block
from vitprune.graph.anatomy.mlp import mlp
from vitprune.graph.anatomy.projections import fail
from vitprune.graph.anatomy.static import scalar_of, static_copy, value_of
from vitprune.graph.families.base import Family
from vitprune.graph.passes.base import Surgery
from vitprune.graph.passes.outputs import Outputs
from vitprune.graph.sorting import toposort
from vitprune.methods.base import BlockTokens
from vitprune.methods.cost import block_macs

NAME = "CvT"


@dataclass(frozen=True)
class Convolution:
    """A depthwise convolution with its BatchNorm folded in: weight [C,1,k,k], bias [C], stride, padding (k, stride, padding square)."""

    weight: np.ndarray
    bias: np.ndarray
    stride: int
    padding: int


@dataclass(frozen=True)
class ConvBlock(Block):
    """A block whose linear maps read convolutions of h instead of h itself."""

    convolve_query: Convolution
    convolve_key: Convolution
    convolve_value: Convolution


@dataclass(frozen=True)
class CvtAnatomy(Anatomy):
    """Anatomy of the last stage; grid is its height and width in tokens.

    embed_macs holds all that does not depend on the number of tokens kept: the earlier stages and all convolutions.
    """

    grid: tuple[int, int] = (0, 0)


def incidence(grid: tuple[int, int], kernel: int, stride: int, padding: int) -> np.ndarray:
    """Float32 [cells, patches]: 1 where a patch lies in the kernel window of an output cell; both row-major."""
    height, width = grid
    rows = range(-padding, height + padding - kernel + 1, stride)
    columns = range(-padding, width + padding - kernel + 1, stride)
    window = np.zeros((len(rows) * len(columns), height, width), np.float32)
    for cell, (top, left) in enumerate((r, c) for r in rows for c in columns):
        window[cell, max(top, 0) : top + kernel, max(left, 0) : left + kernel] = 1
    return window.reshape(len(window), -1)


def _fail(index: int, seen: str, expected: str) -> ExportError:
    return ExportError(
        322,
        f"block {index} of the last stage does not look like a CvT block",
        cause=f"at {seen}: expected {expected}",
        next_step="export transformers' CvtForImageClassification, logits only, in evaluation mode",
    )


def _above(tensor: Any) -> gs.Node | None:
    """The producer of a tensor, seen through reshapes and transposes."""
    node = tensor.inputs[0] if tensor.inputs else None
    while node is not None and node.op in projections.RESHAPING:
        tensor = node.inputs[0]
        node = tensor.inputs[0] if tensor.inputs else None
    return node


def _is_product(node: gs.Node | None) -> bool:
    return node is not None and node.op in ("MatMul", "Einsum") and all(value_of(t) is None for t in node.inputs)


def _logits(softmax: gs.Node, index: int) -> tuple[gs.Node, float]:
    """The product of queries and keys above a Softmax and the scale between them."""
    tensor, scale = softmax.inputs[0], 1.0
    for _ in range(4):
        node = tensor.inputs[0]
        if _is_product(node):
            return node, scale
        factor = next((s for t in node.inputs if (s := scalar_of(t)) is not None), None)
        if node.op not in ("Mul", "Div") or factor is None:
            break
        scale *= factor if node.op == "Mul" else 1 / factor
        tensor = next(t for t in node.inputs if value_of(t) is None)
    raise _fail(index, f"node '{softmax.name}'", "a scaled product of queries and keys before Softmax")


def _convolution(tensor: Any, index: int) -> tuple[Convolution, str, str, Any]:
    """From the source of a linear map up: convolution, names of the CLS row and of h, and the convolution's output node."""
    join = tensor.inputs[0] if tensor.inputs else None
    if join is None or join.op != "Concat" or join.attrs.get("axis") not in (1, -2) or len(join.inputs) != 2:
        raise _fail(index, f"tensor '{tensor.name}'", "CLS joined with a convolutional projection")
    node = _above(join.inputs[1])
    gain, shift = None, None
    if node is not None and node.op == "BatchNormalization":
        scale, offset, mean, variance = (value_of(t) for t in node.inputs[1:5])
        if scale is None or offset is None or mean is None or variance is None:
            raise _fail(index, f"node '{node.name}'", "a BatchNorm with constant statistics")
        gain = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
        shift = offset - mean * gain
        node = _above(node.inputs[0])
    weight = value_of(node.inputs[1]) if node is not None and node.op == "Conv" else None
    if node is None or weight is None or weight.ndim != 4 or weight.shape[1] != 1 or node.attrs.get("group") != len(weight):
        raise _fail(index, f"tensor '{join.inputs[1].name}'", "a depthwise convolution over the token grid")
    strides, pads = set(node.attrs.get("strides", [1, 1])), set(node.attrs.get("pads", [0] * 4))
    square = weight.shape[2] == weight.shape[3] and len(strides) == len(pads) == 1
    if not square or set(node.attrs.get("dilations", [1, 1])) != {1} or node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        raise _fail(index, f"node '{node.name}'", "a square, undilated convolution with explicit padding")
    bias = value_of(node.inputs[2]) if len(node.inputs) > 2 else None
    bias = np.zeros(len(weight), np.float32) if bias is None else bias
    if gain is not None:
        weight, bias = weight * gain[:, None, None, None], bias * gain + shift
    split = _above(node.inputs[0])
    if split is None or split.op not in ("Split", "Slice"):
        raise _fail(index, f"node '{node.name}'", "CLS split from the tokens before the convolution")
    return Convolution(weight, bias, strides.pop(), pads.pop()), join.inputs[0].name, split.inputs[0].name, node


def _block(index: int, softmax: gs.Node) -> tuple[ConvBlock, tuple[int, int]]:
    heads, tokens = int(softmax.outputs[0].shape[1]), int(softmax.outputs[0].shape[2])
    product, scale = _logits(softmax, index)
    reader = softmax.outputs[0].outputs[0]
    if len(softmax.outputs[0].outputs) != 1 or not _is_product(reader):
        raise _fail(index, f"node '{softmax.name}'", "the product with the values as its only reader")
    head_dim = int(reader.inputs[1].shape[-1])
    walks = [projections.walk_up(t, index, heads, head_dim) for t in (product.inputs[0], product.inputs[1], reader.inputs[1])]
    found = [
        _convolution(walking.tensor_named(walk.linear.source, softmax if i < 2 else reader), index)
        for i, walk in enumerate(walks)
    ]
    if len({(row, h) for _, row, h, _ in found}) != 1:
        raise _fail(index, f"node '{softmax.name}'", "queries, keys and values of the same rows")
    if found[0][0].stride != 1 or walks[2].scale != 1.0 or any(walk.norm is not None for walk in walks):
        raise _fail(index, f"node '{softmax.name}'", "one query per token and values straight from their linear map")
    projection, projected, norm = walking.down_to_projection(reader, index)
    if norm is not None:
        raise fail(index, reader, "no norm before the projection")
    residual = walking.down_to_residual(projected, index)
    branch = walking.ancestors_within(projected, residual)
    x = next(t for t in residual.inputs if t.name not in branch)
    h = found[0][2]
    vit.check_norm(walking.tensor_named(h, softmax), x.name, index)
    hidden, output, mlp_branch = mlp(residual.outputs[0], index)
    block = ConvBlock(
        index=index, heads=heads, head_dim=head_dim, tokens=tokens, x=x.name, h=h,
        query=walks[0].linear, key=walks[1].linear, value=walks[2].linear, scale=scale * walks[0].scale * walks[1].scale,
        query_norm=None, key_norm=None, projection=projection, projected=projected.name,
        residual_node=residual.name, attended=residual.outputs[0].name, output=output, mlp_hidden=hidden,
        attention_branch=next(tensor.name for tensor in residual.inputs if tensor is not x), mlp_branch=mlp_branch,
        convolve_query=found[0][0], convolve_key=found[1][0], convolve_value=found[2][0],
    )  # fmt: skip
    shape = found[0][3].outputs[0].shape
    return block, (int(shape[2]), int(shape[3]))


def _is_last_stage(softmax: gs.Node) -> bool:
    """Whether queries come from CLS joined with a convolution (earlier stages have no CLS)."""
    tensor = softmax.inputs[0]
    for _ in range(16):
        node = tensor.inputs[0] if tensor.inputs else None
        if node is None or node.op in ("Conv", "BatchNormalization", "LayerNormalization", "Sub"):
            return False  # a norm lies between attention and the patch embedding of a plain ViT
        if node.op == "Concat":
            beside = _above(node.inputs[1]) if len(node.inputs) == 2 else None
            return beside is not None and beside.op in ("Conv", "BatchNormalization")
        tensor = next((t for t in node.inputs if value_of(t) is None), node.inputs[0])
    return False


def _attentions(graph: gs.Graph) -> list[gs.Node]:
    """Softmax nodes of the last stage, in order."""
    toposort(graph)
    return [n for n in graph.nodes if n.op == "Softmax" and len(n.outputs[0].shape or ()) == 4 and _is_last_stage(n)]


def _total_macs(graph: gs.Graph) -> int:
    """MACs of convolutions and matrix products on tokens (rank 3 and up, so the classifier is not counted)."""
    total = 0
    for node in graph.nodes:
        size = int(np.prod(node.outputs[0].shape)) if node.op in ("Conv", "MatMul", "Einsum") else 0
        if node.op == "Conv":
            total += size * int(np.prod(node.inputs[1].shape[1:]))
        elif size and len(node.outputs[0].shape) > 2:
            total += size * int(node.inputs[0].shape[-1])
    return total


def matches(model: onnx.ModelProto) -> bool:
    """Whether a graph is a CvT with a CLS token."""
    depthwise = any(node.op_type == "Conv" and _groups(node) > 1 for node in model.graph.node)
    return depthwise and bool(_attentions(static_copy(model)))


def _groups(node: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)


def find(model: onnx.ModelProto) -> CvtAnatomy:
    """Anatomy of the last stage of a dense CvT graph.

    Raises:
        ExportError: VP320 open dimensions, VP321 no CvT, VP322 a block of another form (named).
    """
    graph = static_copy(model)
    softmaxes = _attentions(graph)
    if not softmaxes:
        raise ExportError(
            321,
            "this graph is not a CvT with a CLS token",
            cause="no attention whose queries join a CLS row with a convolution over the token grid was found",
            next_step="give the ONNX of a dense CvtForImageClassification",
        )
    pairs = [_block(index, softmax) for index, softmax in enumerate(softmaxes)]
    blocks, grid = tuple(block for block, _ in pairs), pairs[0][1]
    logits, image = graph.outputs[0], graph.inputs[0]
    tokens, width = grid[0] * grid[1] + 1, len(blocks[0].convolve_query.weight)
    maps = blocks[0].convolve_key
    keys = len(incidence(grid, maps.weight.shape[2], maps.stride, maps.padding)) + 1
    full = block_macs(BlockTokens(tokens, tokens, tokens), width, blocks[0].mlp_hidden, keys)
    return CvtAnatomy(
        input=image.name, image_shape=tuple(int(d) for d in image.shape[1:]), outputs=tuple(o.name for o in graph.outputs),
        blocks=blocks, patches=grid[0] * grid[1], prefix=1, width=width,
        embed_macs=int(_total_macs(graph) - len(blocks) * full), classes=int(logits.shape[-1]), reads_cls=True, keys=keys, grid=grid,
    )  # fmt: skip


def _canonical(surgery: Surgery) -> None:
    """The pass of a method that knows CvT writes every block canonically; without sites nothing leaves."""
    surgery.method.surgery_for(NAME)().run(surgery)


FAMILY = Family(NAME, "convolutional projections", matches, find, _canonical, (Outputs,))
